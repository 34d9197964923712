"""Text that is burned into pictures is listed, where the recogniser is installed."""

import importlib.util
import sys

import dicom_files
import numpy as np
import pytest
import tiny
from PIL import Image, ImageDraw

from deblur_mae_jax.data import privacy
from deblur_mae_jax.errors import UserError

sys.path.insert(0, str(tiny.ROOT / "scripts"))


def screen(text):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 30, (200, 320)).astype(np.uint8))
    ImageDraw.Draw(image).text((20, 10), text, fill=255, font_size=22)
    return np.asarray(image)


def test_without_the_recogniser_it_is_one_clear_line(tmp_path, monkeypatch):
    import find_text

    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    with pytest.raises(UserError, match=r"not installed: pip install '\.\[ocr\]'"):
        find_text.main([str(tmp_path)])


@pytest.mark.skipif(not importlib.util.find_spec("rapidocr_onnxruntime"), reason="RapidOCR is not installed")
def test_pictures_with_words_are_listed(tmp_path):
    import find_text

    for i, text in enumerate(("", "JANE DOE 1970", "")):
        Image.fromarray(screen(text)).save(tmp_path / f"{i}.png")
    found = find_text.main([str(tmp_path), f"--output={tmp_path / 'out' / 'text.csv'}"])
    assert list(found) == ["1.png"] and "JANE" not in (tmp_path / "out" / "text.csv").read_text()


def test_the_file_behind_a_name_is_found_with_the_key(tmp_path, capsys):
    import find_dicom

    from deblur_mae_jax.data import dicom, dicom_patients, dicom_series, dicom_volumes

    for i in range(3):
        dicom_files.still(tmp_path / "set" / f"{i}.dcm", patient=f"P{i}")
    (tmp_path / "set" / "notes.txt").write_text("x")
    (tmp_path / "run").mkdir()
    privacy.use(tmp_path / "run")
    headers, _, skipped = dicom.read_headers(tmp_path / "set", 1)
    name = dicom.name_of(headers[1], None)
    privacy.use(None)
    found = find_dicom.main([str(tmp_path / "run"), str(tmp_path / "set"), f"{name}_00003", skipped[0].name])
    assert found == {name: [headers[1].path], skipped[0].name: [str(tmp_path / "set" / "notes.txt")]}
    assert name in capsys.readouterr().out
    volume = np.random.default_rng(0).integers(-1000, 1000, (9, 8, 10))
    dicom_files.slices(tmp_path / "set" / "ct", volume, patient="P9", series="1.2.9", study="1.2")
    dicom_files.slices(tmp_path / "set" / "few", volume[:3], patient="P8", series="1.2.8", study="1.3")
    privacy.use(tmp_path / "run")
    headers, _, _ = dicom.read_headers(tmp_path / "set", 1)
    volumes, left_out = dicom_series.build(headers)
    series, lost = dicom_volumes.name_of(volumes[0]), f"series_{privacy.pseudonym('series', '1.2.8')}"
    patient = dict(zip((h.patient for h in headers), dicom_patients.patients(headers, []), strict=True))["P9|"]
    found = find_dicom.main([str(tmp_path / "run"), str(tmp_path / "set"), series, patient, lost])
    assert [len(paths) for paths in found.values()] == [9, 9, 1] and len(left_out) == 4
    with pytest.raises(UserError, match="has the name image_0"):
        find_dicom.main([str(tmp_path / "run"), str(tmp_path / "set"), "image_0"])
    with pytest.raises(UserError, match="holds no dicom_key"):
        find_dicom.main([str(tmp_path / "set"), str(tmp_path / "set")])


def test_files_that_are_not_read_are_not_said_to_be_free_of_text(tmp_path, monkeypatch, capsys):
    import find_text

    monkeypatch.setattr(find_text, "recogniser", lambda: lambda picture: [])
    root = tmp_path / "set"
    root.mkdir()
    for i in range(3):
        Image.fromarray(screen("")).save(root / f"{i}.png")
    (root / "2.png").write_bytes((root / "2.png").read_bytes()[:500])
    (root / "letter.png").write_bytes(b"%PDF-1.7")
    assert find_text.main([str(root), f"--output={tmp_path / 'text.csv'}"]) == {}
    lines = (tmp_path / "text_not_read.csv").read_text().splitlines()
    assert sorted(line.partition(",")[0] for line in lines[1:]) == ["2.png", "letter.png"]
    assert "2 files could not be read and were NOT checked for text" in capsys.readouterr().err


def test_one_picture_on_which_the_recogniser_fails_costs_no_other(tmp_path, monkeypatch):
    import find_text

    def words(picture):
        if picture.width == 30:
            raise RuntimeError("no such shape")
        return ["DOE"]

    monkeypatch.setattr(find_text, "recogniser", lambda: words)
    for i, side in enumerate((40, 30, 50)):
        Image.new("L", (side, 40), 90 + i).save(tmp_path / f"{i}.png")
    assert find_text.main([str(tmp_path), f"--output={tmp_path / 'text.csv'}"]) == {"0.png": 1, "2.png": 1}
    assert "1.png,the recogniser failed: no such shape" in (tmp_path / "text_not_read.csv").read_text()
    (tmp_path / "list.csv").write_text("path\n")
    with pytest.raises(UserError, match=r"'.*list\.csv' exists and is not a list of images with text"):
        find_text.main([str(tmp_path), f"--output={tmp_path / 'list.csv'}"])
