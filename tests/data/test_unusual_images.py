"""Image files that are easily read wrongly: bit depths, photometry, orientation, transparency, several frames."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from deblur_mae_jax.data import decode, index, raster
from deblur_mae_jax.data.decode import Decoder
from deblur_mae_jax.data.source import BadImage


def picture(height=40, width=50):
    """All gray levels from 0 to 255."""
    return np.rint(np.linspace(0, 255, height * width)).reshape(height, width).astype(np.uint8)


def upright(name, values, **options):
    """A TIFF by tifffile, with tags that Pillow does not write."""
    out = io.BytesIO()
    tifffile.imwrite(out, values, **options)
    return out.getvalue()


def gray(data, **fields):
    return Decoder(**fields)(data)[..., 0]


DEEP = picture().astype(np.uint16) * 257
WHITE_IS_SMALL = {
    "8 bit": (255 - picture()), "16 bit": (65535 - DEEP), "16 bit, big-endian": (65535 - DEEP).astype(">u2"),
    "32 bit": (2**32 - 1 - picture().astype(np.uint32) * 16843009),
}  # fmt: skip


@pytest.mark.parametrize("name", WHITE_IS_SMALL)
def test_tiffs_in_which_small_is_white(name):
    values = WHITE_IS_SMALL[name]
    order = ">" if values.dtype.byteorder == ">" else "<"
    data = upright(name, values, photometric="miniswhite", byteorder=order)
    assert abs(gray(data).astype(int) - picture()).max() <= 1


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_tiffs(orientation, compression):
    stored = picture()
    image = Image.fromarray(stored)
    exif = Image.Exif()
    exif[274] = orientation
    jpeg = io.BytesIO()
    image.convert("L").save(jpeg, "PNG", exif=exif)
    want = gray(jpeg.getvalue())
    data = upright("", stored, compression=compression, extratags=[(274, "H", 1, orientation, True)])
    np.testing.assert_array_equal(gray(data), want)
    assert Decoder().header(data) == want.shape


def colours16(kind):
    values = np.dstack([DEEP >> 4] * 3)  # 12 bits in 16
    if kind == "png rgb":
        return imagecodecs.png_encode(values)
    if kind == "png gray and alpha":
        return imagecodecs.png_encode(np.dstack([DEEP >> 4, np.full_like(DEEP, 65535)]))
    if kind == "png rgba":
        return imagecodecs.png_encode(np.dstack([values, np.full_like(DEEP, 65535)]))
    if kind == "tiff rgb":
        return upright("", values, photometric="rgb")
    if kind == "tiff rgb in planes":
        return upright("", np.moveaxis(values, -1, 0), photometric="rgb", planarconfig="separate")
    if kind == "jpeg 2000":
        return imagecodecs.jpeg2k_encode(values, level=0, reversible=True)
    header = f"P6\n# 12 bits\n{values.shape[1]} {values.shape[0]}\n65535\n".encode()
    return header + values.astype(">u2").tobytes()


@pytest.mark.parametrize(
    "kind",
    ["png rgb", "png gray and alpha", "png rgba", "tiff rgb", "tiff rgb in planes", "jpeg 2000", "ppm"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_twelve_bits_in_sixteen_use_their_own_range(kind, channels):
    got = Decoder(channels=channels)(colours16(kind))
    assert got.shape == (40, 50, channels) and abs(got.astype(int) - picture()[..., None]).max() <= 1


@pytest.mark.parametrize("dtype", ["float64", "float32", "uint32", "int16", "int32"])
def test_tiffs_of_every_number_type(dtype):
    assert abs(gray(upright("", picture().astype(dtype))).astype(int) - picture()).max() <= 1


def test_bigtiff_and_lab():
    np.testing.assert_array_equal(gray(upright("", picture(), bigtiff=True)), picture())
    lab = upright("", np.dstack([picture(), np.zeros((40, 50, 2), np.int8).view(np.uint8)]), photometric="cielab")
    assert np.corrcoef(gray(lab).ravel(), picture().ravel())[0, 1] > 0.98


def png(image, **options):
    out = io.BytesIO()
    image.save(out, "PNG", **options)
    return out.getvalue()


def hidden(kind):
    """A sector scan with white stored under its transparent part, and the same on black."""
    inside = np.zeros((40, 50), bool)
    inside[5:30, 10:40] = True
    under = np.where(inside, picture(), 255).astype(np.uint8)
    alpha = (inside * 255).astype(np.uint8)
    want = np.where(inside, picture(), 0)
    if kind == "rgba":
        return png(Image.fromarray(np.dstack([under, under, under, alpha]), "RGBA")), want
    if kind == "gray and alpha":
        return png(Image.fromarray(np.dstack([under, alpha]), "LA")), want
    if kind == "gray with a transparent level":
        values = np.where(inside, np.minimum(picture(), 254), 255).astype(np.uint8)
        return png(Image.fromarray(values), transparency=255), np.where(inside, values, 0)
    if kind == "palette":
        values = np.where(inside, picture() // 2, 255).astype(np.uint8)
        image = Image.fromarray(values, "P")
        image.putpalette([i // 3 for i in range(768)])
        return png(image, transparency=255), np.where(inside, values, 0)
    deep = np.dstack([under, under, under, alpha]).astype(np.uint16) * 257
    return imagecodecs.png_encode(deep), want


@pytest.mark.parametrize("kind", ["rgba", "gray and alpha", "gray with a transparent level", "palette", "16 bit rgba"])
def test_transparent_pixels_are_black_and_it_is_said(kind):
    data, want = hidden(kind)
    pixels, notes = Decoder(bits16="full").decode(data)
    assert abs(pixels[..., 0].astype(int) - want).max() <= 1 and decode.TRANSPARENT in notes


def test_an_opaque_image_and_an_invisible_one_keep_their_colours():
    opaque = Image.fromarray(np.dstack([picture()] * 3 + [np.full((40, 50), 255, np.uint8)]), "RGBA")
    assert Decoder().decode(png(opaque))[1] == []
    invisible = Image.fromarray(np.dstack([picture()] * 3 + [np.zeros((40, 50), np.uint8)]), "RGBA")
    pixels, notes = Decoder().decode(png(invisible))
    np.testing.assert_array_equal(pixels[..., 0], picture())
    assert notes == [decode.ALL_TRANSPARENT]


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "WEBP", "PNG"])
def test_further_frames_are_said(kind):
    frames = [Image.fromarray(np.roll(picture(), i, axis=1)) for i in range(3)]
    out = io.BytesIO()
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], lossless=True)
    pixels, notes = Decoder().decode(out.getvalue())
    assert pixels.shape == (40, 50, 1) and decode.ONE_FRAME in notes


def test_one_outlier_does_not_make_an_image_black():
    values = picture().astype(np.float32)
    values[3, 3] = 1e6
    pixels, notes = Decoder().decode(upright("", values))
    assert notes == [decode.OUTLIERS] and abs(pixels[..., 0].astype(int) - picture())[values < 1e6].max() <= 3


def test_notes_are_counted_with_the_first_name(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(hidden("rgba")[0])
    from deblur_mae_jax.data.image_files import Files
    from deblur_mae_jax.data.source import Source

    files = Files([str(tmp_path / f"{i}.png") for i in range(3)], Decoder())
    source = Source([f"{i}.png" for i in range(3)], files.read, files.header, files.stamp, examine=files.examine)
    cache = tmp_path / "index.json"
    for _ in range(2):  # the second time from the cache
        assert index.build(source, cache=cache).notes == [f"{decode.TRANSPARENT} (3 images, the first '0.png')"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        (b"%PDF-1.7 and more", "a PDF file"), (b"\0" * 128 + b"DICM" + b"\0" * 99, "DICOM"),
        (b"\0\0\1\xba" + b"\0" * 99, "not an image"), (b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image"),
        (b"8BPS" + b"\0" * 60, "Photoshop"), (b"", "empty"),
    ],
)  # fmt: skip
def test_what_is_no_image_is_named(tmp_path, content, reason):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(BadImage, match=reason):
        Decoder()(path)


def test_a_long_thin_image_is_judged_after_it_is_shrunk(tmp_path):
    Image.fromarray(np.zeros((16, 20000), np.uint8)).save(tmp_path / "thin.png")
    with pytest.raises(BadImage, match=r"20000 x 16 pixels become 1024 x 1 by data.max_side=1024"):
        Decoder()(tmp_path / "thin.png")
    assert Decoder(max_side=0)(tmp_path / "thin.png").shape == (16, 20000, 1)


def test_sizes_are_refused_before_anything_is_decoded(monkeypatch):
    def never(*arguments, **options):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", never)
    chunk = lambda kind, body: struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    big = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8_000, 7_000, 8, 0, 0, 0, 0))
    with pytest.raises(BadImage, match=r"8000 x 7000 pixels, over data.max_pixels=50000000"):
        Decoder()(big + chunk(b"IDAT", b""))


def test_headers_name_what_a_file_is(tmp_path):
    assert raster.stranger(b"\x1f\x8b\x08") == "a gzip file" and raster.stranger(b"abc") == ""


def test_a_jpeg_whose_end_is_zeros_is_refused(tmp_path):
    """As after an interrupted copy into a file of the full size; decoders show the rest as gray without a word."""
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100)).astype(np.uint8)
    thumbnail = io.BytesIO()
    Image.fromarray(pixels[:8, :8]).save(thumbnail, "JPEG")
    exif = b"Exif\0\0" + thumbnail.getvalue()  # has an end marker of its own
    for options in ({}, {"progressive": True}, {"exif": exif}):
        Image.fromarray(pixels).save(tmp_path / "a.jpg", **options)
        whole = (tmp_path / "a.jpg").read_bytes()
        assert Decoder()(tmp_path / "a.jpg").shape == (80, 100, 1)
        assert Decoder()(whole + b"trailing bytes").shape == (80, 100, 1)
        place = len(whole) * 6 // 10
        with pytest.raises(BadImage, match=r"damaged: (the JPEG ends early; was it|image file is truncated)"):
            Decoder()(whole[:place] + bytes(len(whole) - place))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "JPEG2000"])
def test_any_image_whose_end_is_zeros_is_refused(kind):
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}))
    whole = buffer.getvalue()
    assert Decoder()(whole).shape == (80, 100, 1)
    for share in (0.5, 0.9):
        place = int(len(whole) * share)
        with pytest.raises(BadImage, match=r"damaged: "):
            Decoder()(whole[:place] + bytes(len(whole) - place))


def test_a_wrong_checksum_is_damage_and_damaged_metadata_is_not():
    buffer = io.BytesIO()
    Image.fromarray(np.full((80, 100), 90, np.uint8)).save(buffer, "PNG", exif=b"garbage instead of tags")
    whole = buffer.getvalue()
    pixels, notes = Decoder().decode(whole)
    assert (pixels == 90).all() and notes == ["its orientation (EXIF) is damaged; it is read as stored"]
    place = whole.index(b"IDAT") + 12
    with pytest.raises(BadImage, match="damaged: "):
        Decoder()(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK"])
def test_colours_are_said_in_every_mode(mode):
    red = np.zeros((40, 50, 3), np.uint8)
    red[5:20, 5:30, 0] = 200
    image = Image.fromarray(red).convert(mode)
    assert any("is read as its luma" in note for note in Decoder().decode(encoded(image, mode))[1])


def encoded(image, mode):
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    return buffer.getvalue()


def test_few_bits_in_many_are_said():
    values = (picture().astype(np.uint16) * 16).clip(0, 4095)
    _, notes = Decoder(bits16="full").decode(imagecodecs.png_encode(values))
    assert decode.DARK in notes
    _, notes = Decoder(bits16="full").decode(imagecodecs.png_encode(values * 16))
    assert decode.DARK not in notes
