"""The values of masks: whole numbers, mapped values, and what is refused."""

import struct
import zlib

import numpy as np
import pytest
import tifffile
import tiny
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage

from deblur_mae_jax import network
from deblur_mae_jax.data import masks
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.training import supervision

REGIONS = np.zeros((24, 32), np.uint8)
REGIONS[3:12, 4:20], REGIONS[14:22, 20:30] = 1, 2


def write(root, make, count=6, suffix=".png"):
    """Images, and a mask for each, saved by `make(path)`."""
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, REGIONS.shape).astype(np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i}.png")
        make(root / "masks" / f"{i}{suffix}")


def divided(root, **fields):
    config = tiny.resolved(
        "segment_images",
        data__name="image_folder",
        data__root=str(root),
        data__folds=3,
        search__setting="none",
        **fields,
    )
    return supervision.divided(config, network.identify(config))


def save(values, **options):
    return lambda path: Image.fromarray(values).save(path, **options)


COLOURS = np.array([[0, 0, 0], [255, 0, 0], [0, 130, 0]], np.uint8)[REGIONS]
TWO_NAMES = {"data__mask_values": "#ff0000=lesion,#008200=cyst"}


def test_numbers_are_classes(tmp_path):
    write(tmp_path, save(REGIONS))
    index, labels = divided(tmp_path)
    assert labels.classes == ["background", "label 1", "label 2"] and labels.mask_values == [0, 1, 2]
    np.testing.assert_array_equal(index.source.masks(0), REGIONS)


def test_colours_are_named_or_refused(tmp_path):
    write(tmp_path, save(COLOURS))
    with pytest.raises(UserError, match=r"holds colours \(#000000, #008200, #ff0000\).*config.data.mask_values"):
        divided(tmp_path)
    index, labels = divided(tmp_path, **TWO_NAMES)
    assert labels.classes == ["background", "lesion", "cyst"]
    np.testing.assert_array_equal(index.source.masks(0), REGIONS)
    with pytest.raises(UserError, match=r"the colour #008200, which config.data.mask_values does not name"):
        divided(tmp_path, data__mask_values="#ff0000=lesion")
    index, labels = divided(tmp_path, data__mask_values="#ff0000=lesion,*=background")
    assert labels.classes == ["background", "lesion"]


def test_values_above_255_are_named_or_refused(tmp_path):
    write(tmp_path, lambda path: tifffile.imwrite(path, np.array([0, 300, 620], np.uint16)[REGIONS]), suffix=".tif")
    with pytest.raises(UserError, match=r"holds 620, and without config.data.mask_values a class is a number from 0"):
        divided(tmp_path)
    index, labels = divided(tmp_path, data__mask_values="300-310=vessel,620=organ")
    assert labels.classes == ["background", "vessel", "organ"]
    np.testing.assert_array_equal(index.source.masks(0), REGIONS)


def test_nearly_whole_numbers_are_rounded_and_said(tmp_path):
    write(tmp_path, lambda path: tifffile.imwrite(path, (REGIONS * 0.9999).astype(np.float32)), suffix=".tif")
    index, _ = divided(tmp_path)
    np.testing.assert_array_equal(index.source.masks(0), REGIONS)
    assert any("close to whole numbers" in note and "6 images" in note for note in index.notes)


def test_soft_floats_are_refused(tmp_path):
    write(tmp_path, lambda path: tifffile.imwrite(path, (REGIONS * 0.4).astype(np.float32)), suffix=".tif")
    with pytest.raises(UserError, match=r"holds 0.4, and a class is a whole number"):
        divided(tmp_path)
    _, labels = divided(tmp_path, data__mask_values="0.4+0.8=lesion,*=background")
    assert labels.classes == ["background", "lesion"]


@pytest.mark.parametrize("quality", [60, 95])
def test_masks_saved_as_jpeg_are_refused_with_the_cure(tmp_path, quality):
    write(tmp_path, save((REGIONS > 0).astype(np.uint8) * 255, quality=quality), suffix=".jpg")
    with pytest.raises(UserError, match=r"saved as JPEG or in another way that changes values.*PNG"):
        divided(tmp_path)
    index, labels = divided(tmp_path, data__mask_values="0-127=background,128-255=lesion")
    assert labels.classes == ["background", "lesion"]
    assert (index.source.masks(0) != (REGIONS > 0)).mean() < 0.02


@pytest.mark.parametrize("mapping", ["255=lesion,*=background", "#ff0000=lesion,*=background"])
def test_a_lossy_mask_with_single_values_is_refused(tmp_path, mapping):
    """JPEG stores #ff0000 as (254, 0, 0), so that `*` would make background of the lesion."""
    red = np.stack([(REGIONS > 0) * 255, REGIONS * 0, REGIONS * 0], axis=-1).astype(np.uint8)
    write(tmp_path, save(red if "#" in mapping else red[..., 0]), suffix=".jpg")
    with pytest.raises(UserError, match=r"saved as JPEG or in another way that changes values"):
        divided(tmp_path, data__mask_values=mapping)


@pytest.mark.parametrize("kind", ["tiff2", "tiff4", "pgm", "pgm16"])
def test_masks_that_pillow_spreads_hold_their_own_numbers(tmp_path, kind):
    values = np.minimum(REGIONS, 2).astype(np.uint8)

    def make(path):
        if kind.startswith("pgm"):
            deep = kind == "pgm16"
            stored = values.astype(">u2") if deep else values
            path.write_bytes(b"P5 %d %d %d\n" % (*values.shape[::-1], 600 if deep else 2) + stored.tobytes())
        else:
            bits = int(kind[-1])
            fields = np.pad(values, ((0, 0), (0, -values.shape[1] % (8 // bits))))
            packed = np.zeros((fields.shape[0], fields.shape[1] * bits // 8), np.uint8)
            for i in range(8 // bits):
                packed |= fields[:, i :: 8 // bits] << (8 - bits * (i + 1))
            path.write_bytes(tiff_of_bits(packed.tobytes(), values.shape, bits))

    write(tmp_path, make, suffix=".pgm" if kind.startswith("pgm") else ".tif")
    index, _ = divided(tmp_path)
    np.testing.assert_array_equal(index.source.masks(0), values)


def tiff_of_bits(body, shape, bits):
    entries = [(256, 4, 1, shape[1]), (257, 4, 1, shape[0]), (258, 3, 1, bits), (259, 3, 1, 1), (262, 3, 1, 1),
               (273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, shape[0]), (279, 4, 1, len(body))]  # fmt: skip
    table = b"".join(struct.pack("<HHI", *entry[:3]) + struct.pack("<I", entry[3]) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(entries)) + table + bytes(4)


def test_a_mask_that_ends_in_zeros_is_damaged(tmp_path):
    def make(path):
        save((REGIONS > 0).astype(np.uint8) * 255)(path)
        whole = path.read_bytes()
        path.write_bytes(whole[:-20] + bytes(20))

    write(tmp_path, make)
    with pytest.raises(UserError, match=r"damaged: .* PNG .*; was it copied completely"):
        divided(tmp_path)


def test_soft_edges_are_refused_with_the_cure(tmp_path):
    large = Image.fromarray((REGIONS > 0).astype(np.uint8) * 255)
    soft = np.asarray(large.resize((16, 12), Image.Resampling.BILINEAR).resize((32, 24), Image.Resampling.BILINEAR))
    write(tmp_path, save(soft))
    with pytest.raises(UserError, match="only occur between regions, so the masks have soft edges"):
        divided(tmp_path)
    assert divided(tmp_path, data__mask_values="0-127=background,128-255=lesion")[1].classes == ["background", "lesion"]


def test_soft_edges_of_a_volume_are_found():
    volume = np.zeros((12, 12, 12), np.uint8)
    volume[3:9, 3:9, 3:9] = 4
    soft = np.rint(ndimage.uniform_filter(volume.astype(float), 3)).astype(np.uint8)
    assert masks.edge_values(soft) == ([0, 4], [1, 2, 3])
    assert masks.edge_values(volume) == ([0, 4], [])
    for index in range(12):
        assert masks.edge_values(soft[:, :, index : index + 1]) == masks.edge_values(soft[:, :, index])


def test_a_thin_outline_is_a_class(tmp_path):
    outline = np.zeros_like(REGIONS)
    outline[5, 4:20] = outline[15, 4:20] = 255
    write(tmp_path, save(outline))
    assert divided(tmp_path)[1].mask_values == [0, 255]


def test_opacity_is_a_mask_only_when_it_is_asked_for(tmp_path):
    alpha = (REGIONS > 0).astype(np.uint8) * 255
    write(tmp_path, save(np.dstack([np.zeros((24, 32, 3), np.uint8), alpha])))
    with pytest.raises(UserError, match="partly transparent"):
        divided(tmp_path)
    index, labels = divided(tmp_path, data__mask_values="alpha=lesion")
    assert labels.classes == ["background", "lesion"]
    np.testing.assert_array_equal(index.source.masks(0), REGIONS > 0)


@pytest.mark.parametrize("drawn_on", ["stored pixels", "upright pixels", "both turned"])
def test_masks_of_turned_images(tmp_path, drawn_on):
    exif = Image.Exif()
    exif[274] = 6
    upright = np.rot90(REGIONS, -1)
    if drawn_on == "stored pixels":
        write(tmp_path, save(REGIONS))
    elif drawn_on == "upright pixels":
        write(tmp_path, save(np.ascontiguousarray(upright)))
    else:
        write(tmp_path, save(REGIONS, exif=exif))
    for i in range(6):
        Image.fromarray(REGIONS * 100).save(tmp_path / "images" / f"{i}.png", exif=exif)
    index, _ = divided(tmp_path)
    assert index.source.read(0).shape == (32, 24, 1)
    np.testing.assert_array_equal(index.source.masks(0), upright)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1", "must be VALUE=CLASS"), ("x=lesion", "must be a number"), ("9-3=lesion", "no range"),
        ("0=background", "names 0 classes"), ("=lesion", "must be VALUE=CLASS"),
    ],
)  # fmt: skip
def test_bad_mappings_are_one_clear_line(text, message):
    with pytest.raises(UserError, match=message):
        masks.parse(text)


def test_names_come_from_one_place(tmp_path):
    write(tmp_path, save(REGIONS))
    with pytest.raises(UserError, match=r"have their names from config.data.mask_values already"):
        divided(tmp_path, data__mask_values="1=a,2=b", data__label_names=("a", "b"))


@given(st.lists(st.integers(-5, 70_000), min_size=1, max_size=30), st.sampled_from(["i4", "f4", "f8"]))
def test_a_mask_is_its_own_numbers_or_an_error(values, dtype):
    array = np.array(values, dtype)
    try:
        got, notes = masks.classes(array, None)
    except BadImage:
        assert min(values) < 0 or max(values) > 255
    else:
        assert got.dtype == np.uint8 and got.tolist() == values and not notes


def test_masks_of_one_image_are_joined():
    a, b = np.array([[0, 1]], np.uint8), np.array([[2, 0]], np.uint8)
    assert masks.join([a, b]).tolist() == [[2, 1]]
    with pytest.raises(BadImage, match="its masks have the shapes"):
        masks.join([a, np.zeros((2, 2), np.uint8)])


def test_masks_whose_border_is_no_background_are_said(tmp_path):
    count = iter(range(99))
    write(tmp_path, lambda path: save(np.where((REGIONS > 0) == (next(count) % 2 == 0), 255, 0).astype(np.uint8))(path))
    index, _ = divided(tmp_path)
    assert "most of the border of its mask holds 255, and 0 is the background: is it inverted?" in str(index.notes)
    write(tmp_path / "usual", save(np.where(REGIONS > 0, 255, 0).astype(np.uint8)))
    assert "inverted" not in str(divided(tmp_path / "usual")[0].notes)


@pytest.mark.parametrize("bits", [2, 4])
def test_masks_of_few_bits_hold_their_own_numbers(tmp_path, bits):
    """Pillow spreads the values of a gray PNG with 2 or 4 bits over 0..255."""
    write(tmp_path, lambda path: path.write_bytes(png_of_bits(REGIONS, bits)))
    _, labels = divided(tmp_path)
    assert labels.mask_values == [0, 1, 2]


def png_of_bits(values, bits):
    """A gray PNG with this many bits for a value, which Pillow cannot write."""
    height, width = values.shape
    rows = np.unpackbits(values[..., None], axis=2)[..., -bits:].reshape(height, -1)
    packed = np.packbits(rows, axis=1)
    content = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    chunk = lambda kind, data: (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    )  # fmt: skip
    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
