"""Reading images of every kind, and what happens to the bad ones."""

import csv
import dataclasses
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import tiny
from PIL import Image

from deblur_mae_jax.data import dataset, image_folder, index, loader, manifest, order, phantoms, source
from deblur_mae_jax.data.decode import Decoder
from deblur_mae_jax.errors import UserError


def gradient(height=40, width=50):
    y, x = np.mgrid[:height, :width]
    return ((x * 3 + y * 2) % 256).astype(np.uint8)


def write_images(folder, count=10, prefix="image"):
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(np.roll(gradient(), i, axis=1)).save(folder / f"{prefix}_{i:02d}.png")


def data(root, **fields):
    out = tiny.config(data__root=str(root)).data.copy_and_resolve_references()
    with out.unlocked():
        for key, value in fields.items():
            out[key] = value
    return out


FORMATS = {
    "gray.png": lambda p: Image.fromarray(gradient()).save(p),
    "gray.bmp": lambda p: Image.fromarray(gradient()).save(p),
    "gray.tif": lambda p: Image.fromarray(gradient()).save(p),
    "gray.jpg": lambda p: Image.fromarray(gradient()).save(p, quality=98),
    "rgb.png": lambda p: Image.fromarray(np.dstack([gradient()] * 3)).save(p),
    "rgba.png": lambda p: Image.fromarray(gradient()).convert("RGBA").save(p),
    "gray_alpha.png": lambda p: Image.fromarray(gradient()).convert("LA").save(p),
    "palette.png": lambda p: Image.fromarray(gradient()).convert("P").save(p),
    "palette.gif": lambda p: Image.fromarray(gradient()).save(p),
    "cmyk.jpg": lambda p: Image.fromarray(gradient()).convert("CMYK").save(p, quality=98),
    "cmyk.tif": lambda p: Image.fromarray(gradient()).convert("CMYK").save(p),
    "bits16.png": lambda p: Image.fromarray(gradient().astype(np.uint16) * 257).save(p),
    "bits16.tif": lambda p: Image.fromarray(gradient().astype(np.uint16) * 257).save(p),
    "float.tif": lambda p: Image.fromarray(gradient().astype(np.float32)).save(p),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("channels", [1, 3])
def test_formats(tmp_path, name, channels):
    path = tmp_path / name
    FORMATS[name](path)
    decode = Decoder(channels=channels, bits16="minmax" if "float" in name else "full")
    got = decode(path)
    assert got.dtype == np.uint8 and got.shape == (40, 50, channels)
    assert decode.header(path) == (40, 50)
    want = gradient().astype(float)
    if "float" in name:
        want = (want - want.min()) / (want.max() - want.min()) * 255
    allowed = 14 if name.endswith(".jpg") else 1
    assert abs(got[..., 0] - want).max() <= allowed


def test_black_and_white_and_rotated_files(tmp_path):
    Image.fromarray(gradient() > 99).save(tmp_path / "bits.png")
    assert set(np.unique(Decoder()(tmp_path / "bits.png"))) == {0, 255}
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gradient()).save(tmp_path / "turned.jpg", exif=exif)
    assert Decoder()(tmp_path / "turned.jpg").shape == (50, 40, 1)
    assert Decoder().header(tmp_path / "turned.jpg") == (50, 40)


def test_16_bits_use_the_range_they_have(tmp_path):
    Image.fromarray(gradient().astype(np.uint16) * 16).save(tmp_path / "twelve.png")
    assert Decoder(bits16="full")(tmp_path / "twelve.png").max() < 20
    assert Decoder(bits16="minmax")(tmp_path / "twelve.png").max() == 255


def test_large_images_are_shrunk(tmp_path):
    Image.fromarray(gradient(100, 300)).save(tmp_path / "wide.png")
    decode = Decoder(max_side=150)
    assert decode(tmp_path / "wide.png").shape == (50, 150, 1)
    assert decode.header(tmp_path / "wide.png") == (50, 150)


def bomb(path):
    """A PNG whose header claims 60,000 x 60,000 pixels."""

    def chunk(kind, body):
        crc = zlib.crc32(kind + body).to_bytes(4, "big")
        return len(body).to_bytes(4, "big") + kind + body + crc

    header = (60_000).to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999))
        + chunk(b"IEND", b"")
    )  # fmt: skip


def big(path):
    """Honest, but over a limit of 1,000 pixels set by the test."""
    Image.fromarray(gradient(200, 200)).save(path)


def truncated(path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:900])


def nan(path):
    values = gradient().astype(np.float32)
    values[3, 3] = np.nan
    Image.fromarray(values).save(path, format="TIFF")


def archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x", "y")


DAMAGE = {
    "empty.png": lambda p: p.write_bytes(b""),
    "text.png": lambda p: p.write_text("this is not an image"),
    "truncated.png": truncated,
    "bomb.png": bomb,
    "tiny.png": lambda p: Image.fromarray(gradient(3, 3)).save(p),
    "nan.tif": nan,
    "archive.jpg": archive,
}


@pytest.mark.parametrize("name", DAMAGE)
def test_each_kind_of_damage_has_a_reason(tmp_path, name):
    path = tmp_path / name
    DAMAGE[name](path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(source.BadImage) as caught:
            Decoder()(path)
    assert len(str(caught.value)) > 4 and "\n" not in str(caught.value)


def test_bad_files_are_listed_and_the_rest_is_used(tmp_path):
    write_images(tmp_path / "a", 20)
    write_images(tmp_path / "b", 20)
    for name, make in DAMAGE.items():
        make(tmp_path / "b" / name)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "scan.dcm").write_bytes(b"\0" * 128 + b"DICM")
    found = image_folder.source(data(tmp_path), 1)
    usable = index.build(found, max_bad_fraction=0.2)
    assert len(usable) == 40 and usable.canvas == (40, 50)
    names = {s.name for s in usable.skipped}
    hidden = next(name for name in names if name.startswith("file_"))  # the name of a DICOM file may be a patient's
    assert names == {f"b/{n}" for n in DAMAGE} | {"notes.txt", hidden}
    index.write_skipped(tmp_path / "skipped.csv", usable.skipped)
    with open(tmp_path / "skipped.csv", newline="") as file:
        rows = {row["name"]: row["reason"] for row in csv.DictReader(file)}
    assert set(rows) == names and "0 bytes" in rows["b/empty.png"]
    assert "DICOM" in rows[hidden] and "max_pixels" in rows["b/bomb.png"]
    assert usable.source.labels[0] == "a" and usable.source.labels[-1] == "b"


def test_too_many_bad_files_stop_the_run(tmp_path):
    write_images(tmp_path, 3)
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"1 of 4 images.*max_bad_fraction=0.2.*'bad.png'"):
        index.build(image_folder.source(data(tmp_path), 1), max_bad_fraction=0.2)


@pytest.mark.parametrize("kind", ["empty", "missing", "no_image", "all_bad", "unset", "a_file"])
def test_unusable_roots(tmp_path, kind):
    root = tmp_path / "images"
    if kind not in ("missing", "a_file"):
        root.mkdir()
    if kind == "a_file":
        root.write_text("x")
    if kind == "no_image":
        (root / "readme.txt").write_text("x")
    if kind == "all_bad":
        (root / "bad.png").write_bytes(b"x")
    with pytest.raises(UserError, match=r"config\.data\.root") as caught:
        index.build(image_folder.source(data("" if kind == "unset" else root), 1))
    assert "\n" not in str(caught.value)


def test_the_fingerprint_follows_names_sizes_and_pixels(tmp_path):
    write_images(tmp_path, 4)

    def fingerprint():
        return index.build(image_folder.source(data(tmp_path), 1)).fingerprint

    first = fingerprint()
    assert fingerprint() == first
    Image.fromarray(gradient() ^ 1).save(tmp_path / "image_00.png")
    assert fingerprint() != first


def test_a_check_that_is_stopped_keeps_what_it_has_read(tmp_path):
    folder, cache = tmp_path / "images", tmp_path / "index.json"
    write_images(folder, 30)
    calls = []

    def counted(stop_at):
        found = image_folder.source(data(folder), 1)

        def read(number):
            calls.append(number)
            time.sleep(0.01)
            return found.read(number)

        counting = source.Source(found.names, read, found.header, found.stamp)

        def progress(done, total):
            if done == stop_at:
                raise KeyboardInterrupt

        return index.build(counting, cache=cache, num_threads=1, progress=progress)

    with pytest.raises(KeyboardInterrupt):
        counted(10)
    assert 10 <= len(calls) < 30  # images that nobody waits for are not read
    assert len(counted(0)) == 30 and len(calls) <= 32  # one may have been read when the check was stopped
    before = len(calls)
    counted(0)
    assert len(calls) == before


def test_the_cache_saves_reading_and_notices_changes(tmp_path):
    folder, cache = tmp_path / "images", tmp_path / "index.json"
    write_images(folder, 4)
    reads = []

    def build():
        found = image_folder.source(data(folder), 1)
        counting = source.Source(found.names, lambda i: reads.append(i) or found.read(i), found.header, found.stamp)
        return index.build(counting, cache=cache)

    first = build()
    assert len(reads) == 4
    assert build().fingerprint == first.fingerprint and len(reads) == 4
    Image.fromarray(gradient() ^ 1).save(folder / "image_00.png")
    assert build().fingerprint != first.fingerprint and len(reads) == 5
    cache.write_text("{ damaged")
    build()
    assert len(reads) == 9


def test_a_fraction_is_a_fixed_subset(tmp_path):
    write_images(tmp_path, 10)

    def names(seed, fraction):
        found = image_folder.source(data(tmp_path), 1)
        return index.build(found, fraction=fraction, seed=seed).source.names

    assert len(names(0, 0.3)) == 3 and names(0, 0.3) == names(0, 0.3)
    assert set(names(0, 0.3)) <= set(names(0, 0.6))
    assert any(names(0, 0.3) != names(seed, 0.3) for seed in range(1, 4))


def write_manifest(path, rows, columns=("path", "label", "split", "group")):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def test_manifest(tmp_path):
    write_images(tmp_path / "images", 6)
    rows = [(f"images/image_{i:02d}.png", "ab"[i % 2], ("train", "pool", "val")[i % 3], f"p{i // 2}") for i in range(6)]
    write_manifest(tmp_path / "manifest.csv", rows)
    for root in (tmp_path, tmp_path / "manifest.csv"):
        found = manifest.source(data(root, split="train+pool"), 1)
        assert found.names == [rows[i][0] for i in (0, 1, 3, 4)]
        assert found.labels == list("abba") and found.groups == ["p0", "p0", "p1", "p2"]
    assert len(manifest.source(data(tmp_path, split="all"), 1)) == 6
    with pytest.raises(UserError, match=r"'test'.*Choices: pool, train, val, all"):
        manifest.source(data(tmp_path, split="test"), 1)
    write_manifest(tmp_path / "twice.csv", [rows[0], rows[0]])
    with pytest.raises(UserError, match="twice"):
        manifest.source(data(tmp_path / "twice.csv", split="train"), 1)
    write_manifest(tmp_path / "no_path.csv", [("a",)], ("name",))
    with pytest.raises(UserError, match="no column path"):
        manifest.source(data(tmp_path / "no_path.csv"), 1)


def test_real_manifests(real_data):
    whole = manifest.source(data(real_data / "index_2d.csv", split="train+pool"), 1)
    assert len(whole) == 4990
    part = manifest.source(data(real_data / "usanotai_tiny" / "manifest.csv", split="train"), 1)
    usable = index.build(part)
    assert len(usable) == 306 and usable.canvas == (64, 64) and not usable.skipped


def test_phantoms_are_reproducible_and_grouped():
    made = phantoms.Phantoms(12, seed=1, side=64)
    again = phantoms.Phantoms(12, seed=1, side=64)
    other = phantoms.Phantoms(12, seed=2, side=64)
    phantoms._view.cache_clear()
    first = [made.read(i) for i in range(6)]
    phantoms._view.cache_clear()
    for i, image in enumerate(first):
        np.testing.assert_array_equal(image, again.read(i))
    assert any(not np.array_equal(a, other.read(i)) for i, a in enumerate(first))
    many = phantoms.Phantoms(60, seed=1, side=64)
    assert made.label(0) == made.label(1) == made.label(2)
    assert {many.label(3 * i) for i in range(20)} == {"benign", "malignant"}
    for i in range(4):
        mask = made.mask(3 * i)
        inside, outside = (
            first[0][made.mask(0) > 0],
            first[0][(made.mask(0) == 0) & (first[0][..., 0] > 0)],
        )
        assert set(np.unique(mask)) == {0, 255} and 0.005 < (mask > 0).mean() < 0.4
        assert inside.mean() < outside.mean()  # lesions are hypoechoic


def test_order_is_a_function_of_seed_and_position():
    o = order.Order(num_images=10, batch_size=4, seed=3)
    epoch = np.concatenate([o.batch(0), o.batch(1)])
    assert len(set(epoch)) == 8 and o.steps_per_epoch == 2  # the incomplete batch is dropped
    np.testing.assert_array_equal(o.batch(5), order.Order(10, 4, 3).batch(5))
    assert not np.array_equal(epoch, np.concatenate([o.batch(2), o.batch(3)]))
    small = order.Order(num_images=3, batch_size=8, seed=0)
    assert set(small.batch(0)) == {0, 1, 2} and small.steps_per_epoch == 3 / 8


def test_a_file_that_vanishes_is_replaced_and_reported(tmp_path):
    write_images(tmp_path, 5)
    usable = index.build(image_folder.source(data(tmp_path), 1))
    (tmp_path / "image_02.png").unlink()
    (tmp_path / "image_03.png").write_bytes(b"junk")
    reader = loader.Loader(usable, 1)
    seen = []
    reader.on_failure = seen.append
    position, pixels, mask = reader.read(2)
    assert mask is None and position == 4  # so that its label goes with it
    np.testing.assert_array_equal(pixels, reader.read(4)[1])
    reader.read(2)
    assert [s.name for s in seen] == ["image_02.png", "image_03.png"]


def test_streams_start_anywhere_and_threads_change_nothing(tmp_path):
    write_images(tmp_path, 9)
    usable = index.build(image_folder.source(data(tmp_path), 1))
    reader, o = loader.Loader(usable, 1), order.Order(9, 4, 0)

    def batches(start, threads):
        return list(
            loader.stream(reader, o, start_step=start, num_steps=6, rows=np.arange(4),
                          num_threads=threads)
        )  # fmt: skip

    one, two, late = batches(0, 1), batches(0, 3), batches(4, 2)
    assert len(one) == 6 and len(late) == 2
    for a, b in zip([*one, *one[4:]], [*two, *late], strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("shape", "kind"),
    [((40, 50), "u1"), ((40, 50, 1), "u1"), ((40, 50, 3), "u1"), ((40, 50, 4), "u1"), ((40, 50, 2), "u1"),
     ((60, 150), "u2"), ((150, 60, 3), "u1")],
)  # fmt: skip
def test_an_array_is_prepared_as_a_file_with_its_values(tmp_path, shape, kind, channels):
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256 if kind == "u1" else 4096, shape).astype(kind)  # 12 bits in 16
    modes = {2: None, 3: {1: None, 2: "LA", 3: "RGB", 4: "RGBA"}.get(shape[-1])}
    Image.fromarray(values.squeeze(), modes[len(shape)]).save(tmp_path / "a.png")
    decoder = Decoder(channels, max_side=100)
    wanted, said = decoder.decode(tmp_path / "a.png")
    found, notes = decoder.prepare(values)
    np.testing.assert_array_equal(found, wanted)
    assert notes == said and max(found.shape) <= 100


@pytest.mark.parametrize(("shape", "said"), [((10, 40), "under data.min_side"), ((2, 40, 40, 3), "is no image")])
def test_an_array_that_is_no_image_is_refused(shape, said):
    with pytest.raises(source.BadImage, match=said):
        Decoder().prepare(np.zeros(shape, np.uint8))


def test_tensorflow_datasets(tmp_path):
    import tiny_tfds

    from deblur_mae_jax.data import tfds_source

    tiny_tfds.prepare(tmp_path, [np.roll(gradient(), i) for i in range(8)])
    fields = data(tmp_path, tfds_name="tiny_ultrasound", split="train")
    found = tfds_source.source(fields, 1)
    assert len(found) == 8 and set(found.labels) == {"benign", "malignant"}
    assert sorted(found.groups) == sorted(2 * [f"patient {i}" for i in range(4)])  # splits keep them whole
    wanted = {np.roll(gradient(), i).tobytes() for i in range(8)}
    assert {found.read(i).tobytes() for i in range(8)} == wanted
    assert tfds_source.source(fields, 3).read(0).shape == (40, 50, 3)
    assert tfds_source._text(tiny_tfds.tfds.features.ClassLabel(names=["a", "b"]), -1) == ""  # unknown, in TFDS

    class Damaged:
        def __getitem__(self, index):
            raise AttributeError("'NoneType' object has no attribute 'shape'")

    with pytest.raises(source.BadImage, match="damaged"):
        tfds_source.Records(Damaged(), Decoder()).read(0)
    with pytest.raises(UserError, match="cannot load 'no_such_set'"):
        tfds_source.source(data(tmp_path, tfds_name="no_such_set"), 1)
    with pytest.raises(UserError, match="tfds_name is not set"):
        tfds_source.source(data(tmp_path), 1)


def test_every_data_set_keeps_the_contract(tmp_path):
    from deblur_mae_jax import lookup

    found = [m for m in lookup.module_names("data") if m in ("image_folder", "manifest", "phantoms")]
    assert len(found) == 3
    write_images(tmp_path, 3)
    write_manifest(tmp_path / "manifest.csv", [(p.name, "", "train", "") for p in
                                              sorted(Path(tmp_path).glob("*.png"))])  # fmt: skip
    for name in found:
        made = lookup.module("data", name, "source", "config.data.name").source(data(tmp_path), 3)
        assert len(set(made.names)) == len(made) > 0
        image = made.read(0)
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        assert tuple(made.size_of(0)) == image.shape[:2]


def test_a_failed_read_is_tried_again_at_the_next_start(tmp_path, monkeypatch):
    for i in range(6):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (30, 40), np.uint8)).save(tmp_path / f"{i}.png")
    load = lambda: dataset.load_source(tiny.config(data__name="image_folder", data__root=str(tmp_path)), "all")
    source, cache = load(), tmp_path / "index.json"
    real = source.examine

    def failing(number):
        if number == 2:
            raise OSError(5, "Input/output error")
        return real(number)

    first = index.build(dataclasses.replace(source, examine=failing), cache=cache)
    assert len(first) == 5 and "Input/output error" in first.skipped[0].reason
    assert len(index.build(load(), cache=cache)) == 6
