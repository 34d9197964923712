"""Copies of images are found, whatever was done to them, and other images are not."""

import io
import sys

import numpy as np
import pytest
import tiny
from PIL import Image
from scipy import ndimage

from deblur_mae_jax.data import copies
from deblur_mae_jax.data.perceptual import perceptual_hash
from deblur_mae_jax.data.source import Source
from deblur_mae_jax.errors import UserError


def speckled(seed, height=96, width=120):
    """Smooth regions under speckle, as in ultrasound."""
    random = np.random.default_rng(seed)
    base = ndimage.gaussian_filter(random.normal(size=(height, width)), 9)
    base = 128 + 500 * base + ndimage.gaussian_filter(random.normal(0, 60, (height, width)), 1)
    return np.clip(base, 0, 255).astype(np.uint8)


def jpeg(pixels):
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=60)
    return np.asarray(Image.open(io.BytesIO(out.getvalue())))


CHANGES = {
    "resized": (lambda a: np.asarray(Image.fromarray(a).resize((70, 56))), "near-identical"),
    "recompressed": (jpeg, "near-identical"),
    "brighter": (lambda a: np.clip(a * 1.15 + 5, 0, 255).astype(np.uint8), "near-identical"),
    "mirrored": (lambda a: a[:, ::-1].copy(), "mirrored"),
    "upside down": (lambda a: a[::-1].copy(), "upside down"),
    "turned": (lambda a: a[::-1, ::-1].copy(), "turned by 180 degrees"),
    "cropped": (lambda a: a[4:84, 12:112].copy(), "cropped"),
    "narrower": (lambda a: a[:, 5:105].copy(), "cropped"),
}


def source_of(images):
    return Source([f"{i}.png" for i in range(len(images))], lambda i: images[i][..., None])


@pytest.mark.parametrize("name", CHANGES)
def test_a_copy_is_found(name):
    change, kind = CHANGES[name]
    images = [speckled(i) for i in range(8)]
    found = copies.find(source_of([*images, change(images[3])]), [""] * 9)
    assert [(c.first, c.second, c.kind) for c in found] == [(3, 8, kind)] and found[0].score > 0.8


def test_equal_pixels_are_told_by_their_hashes():
    images = [speckled(0), speckled(1), speckled(0)]
    assert copies.find(source_of(images), ["a", "b", "a"])[0] == copies.Copy(0, 2, "identical", 1.0)


def test_hashes_are_those_of_imagehash():
    for seed in range(5):
        ours = copies.hashes_of([Image.fromarray(speckled(seed))])[0] > 0
        np.testing.assert_array_equal(ours, perceptual_hash(speckled(seed)[..., None], copies.SIDE))


def test_constant_and_unreadable_images_are_no_copies():
    flat = np.full((40, 40), 9, np.uint8)
    assert copies.part_score(Image.fromarray(flat).resize((128, 128)), Image.fromarray(flat).resize((128, 128))) == 0


def test_the_audit_of_a_set_names_what_matters(tmp_path, capfd):
    sys.path.insert(0, str(tiny.ROOT / "scripts"))
    import audit_data

    for i in range(6):
        folder = tmp_path / "set" / ("train", "test")[i % 2] / ("a", "b")[i // 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(speckled(i)).save(folder / f"{i}.png")
    Image.fromarray(speckled(0)[:, ::-1].copy()).save(tmp_path / "set" / "test" / "a" / "copy.png")
    Image.fromarray(speckled(1)).save(tmp_path / "set" / "test" / "b" / "same.png")
    pairs = audit_data.main([str(tmp_path / "set"), f"--output={tmp_path / 'audit.html'}"])
    assert [(p.kind) for p in pairs] == ["identical", "mirrored"]
    rows = (tmp_path / "audit.csv").read_text().splitlines()
    assert rows[1].startswith("in different splits,mirrored") and rows[2].startswith("of different classes,identical")
    page = (tmp_path / "audit.html").read_text()
    assert "1 pairs in different splits" in page and page.count("<img") == 2
    assert "1 pairs of different classes" in capfd.readouterr().err
    (tmp_path / "mine.csv").write_text("path,label\n")
    with pytest.raises(UserError, match=r"--output: '.*mine\.csv' exists and is not a list of copies"):
        audit_data.main([str(tmp_path / "set"), f"--output={tmp_path / 'mine.html'}"])
    assert (tmp_path / "mine.csv").read_text() == "path,label\n"
