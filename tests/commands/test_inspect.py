"""`--inspect`: the table and the contact sheets, without training; and predictions on files from the front door."""

import dicom_files
import numpy as np
import pytest
import tiny
from PIL import Image
from tiny_runs import classifier, command

from deblur_mae_jax.commands import inspect, predict, run
from deblur_mae_jax.data import dicom, phantoms, privacy
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.reports import inspection, predictions


def write(root, count=12, soft=False):
    made = phantoms.Phantoms(3 * count, 1, 40)
    for i in range(count):
        pixels, mask = made.read(3 * i)[..., 0], made.mask(3 * i)
        label = made.label(3 * i)
        for folder, array in (("images", pixels), ("masks", mask)):
            (root / folder / label).mkdir(parents=True, exist_ok=True)
            image = Image.fromarray(array)
            if soft and folder == "masks":
                image = image.resize((20, 20), Image.Resampling.BILINEAR).resize(image.size, Image.Resampling.BILINEAR)
            image.save(root / folder / label / f"p{i:02d}.png")
    (root / "images" / "benign" / "bad.png").write_bytes(b"x")
    return root


@pytest.mark.parametrize("name", ["quickstart", "finetune", "segment_images"])
def test_the_table_and_the_sheets(tmp_path, capfd, name):
    root = write(tmp_path / "set")
    more = {"data__folds": 3} if name != "quickstart" else {}
    config = tiny.config(name, data__name="image_folder", data__root=str(root), **more)
    page = inspect.run(config, tmp_path / "run")
    said = capfd.readouterr().err
    assert "images    12, " in said and "left out  1 file, 'images/benign/bad.png'" in said
    assert ("train 4, val 4, test 4" in said) == (name != "quickstart")
    assert ("classes background, label 1" in said) == (name == "segment_images")
    folder = tmp_path / "run" / "inspection"
    assert page == folder / "index.html" and "<img" in page.read_text()
    assert sorted(p.name for p in folder.iterdir()) == ["contact_sheet.png", "index.html", "skipped.csv"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["inspection"]
    sheet = np.asarray(Image.open(folder / "contact_sheet.png")).reshape(-1, 3)
    assert (sheet == inspection.COLOURS[0]).all(axis=1).sum() > 50  # outlines of masks


def test_what_would_stop_the_run_comes_after_the_table(tmp_path, capfd):
    root = write(tmp_path / "set", soft=True)
    config = tiny.config("segment_images", data__name="image_folder", data__root=str(root), data__folds=3)
    with pytest.raises(UserError, match="soft edges"):
        inspect.run(config, tmp_path / "run")
    assert "masks     12 of 12" in capfd.readouterr().err


@pytest.mark.parametrize("name", ["quickstart", "segment_images"])
def test_masks_that_cannot_be_used_do_not_hide_the_images(tmp_path, capfd, name):
    root = write(tmp_path / "set")
    for path in (root / "masks").glob("*/*.png"):
        shape = np.asarray(Image.open(path)).shape
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (*shape, 3), np.uint8)).save(path)
    config = tiny.config(name, data__name="image_folder", data__root=str(root))
    if name == "quickstart":
        page = inspect.run(config, tmp_path / "run")
        sheet = np.asarray(Image.open(page.parent / "contact_sheet.png"))
        assert len(np.unique(sheet[..., 0])) > 50
    else:
        with pytest.raises(UserError, match="none of the 12 images can be used"):
            inspect.run(config, tmp_path / "run")
        rows = (tmp_path / "run" / "inspection" / "skipped.csv").read_text().splitlines()[1:]
        assert len(rows) >= 12 and sum("its mask holds colours" in row for row in rows) == 12
        assert "left out  12 files" in capfd.readouterr().err
        with pytest.raises(UserError, match=r"all are listed in .*skipped\.csv"):
            run.run(config, tmp_path / "run")
        assert (tmp_path / "run" / "skipped.csv").read_text().count("its mask holds colours") == 12


def test_an_inspection_of_a_pre_training_shows_what_the_run_trains_on(tmp_path, capfd):
    made = phantoms.Phantoms(12, 1, 40)
    for i in range(12):
        folder = tmp_path / "set" / ("train", "val", "test")[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(made.read(i)[..., 0]).save(folder / f"{i}.png")
    config = tiny.config("quickstart", data__name="image_folder", data__root=str(tmp_path / "set"), data__split="train")
    inspect.run(config, tmp_path / "run")
    said = capfd.readouterr().err
    assert "images    4, " in said and "not used: test 4, val 4" in said
    config = tiny.config("quickstart", data__name="image_folder", data__root=str(tmp_path / "set"), data__split="trian")
    with pytest.raises(UserError, match="'trian' is not a split"):
        inspect.run(config, tmp_path / "run")
    assert "images    12, " in capfd.readouterr().err


def test_patients_in_several_splits_are_said(tmp_path, capfd):
    made = phantoms.Phantoms(24, 1, 40)
    lines = ["path,label,split,group"]
    for i in range(24):
        Image.fromarray(made.read(i)[..., 0]).save(tmp_path / f"{i:02d}.png")
        group = "P1" if i < 3 else f"P{i}"
        lines.append(f"{i:02d}.png,{'ab'[i // 3 % 2]},{('train', 'val', 'test')[i % 3]},{group}")
    (tmp_path / "list.csv").write_text("\n".join(lines) + "\n")
    config = tiny.config(
        "finetune",
        data__name="manifest",
        data__root=str(tmp_path / "list.csv"),
        data__val_split="val",
        data__test_split="test",
    )
    inspect.run(config, tmp_path / "run")
    said = " ".join(capfd.readouterr().err.split())
    assert "22, 1 to 3 images each; warning: 1 of them in several splits, the first 'P1' (train, val, test)" in said


def test_the_flag(tmp_path):
    import subprocess

    program, environment = command(tmp_path / "run", data__name="phantoms")
    done = subprocess.run([*program, "--inspect"], env=environment, cwd=tiny.ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "contact sheets" in done.stderr, done.stderr
    assert (tmp_path / "run" / "inspection" / "index.html").exists()
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.slow
def test_predictions_on_dicom(tmp_path, capfd):
    folder, _ = classifier()
    made = phantoms.Phantoms(45, 1, 40)
    for i in range(4):
        dicom_files.still(tmp_path / "set" / f"{i}.dcm", made.read(3 * i)[..., 0], patient=f"Zzyzx{i}")
    path = predict.run(folder, str(tmp_path / "set"), str(tmp_path / "new.csv"))
    table = predictions.read(path)
    assert "most files are DICOM" in capfd.readouterr().err and b"Zzyzx" not in path.read_bytes()
    assert len(table.names) == 4 and all(name.startswith("image_") for name in table.names)


def test_names_in_the_lists_of_an_inspection_can_be_found(tmp_path):
    """The key stays in the workdir, so the run that follows gives the same names."""
    for i in range(4):
        dicom_files.still(
            tmp_path / "set" / f"{i}.dcm", np.kron(np.eye(8) * (i + 1) * 50, np.ones((6, 6))).astype(np.uint8)
        )
    (tmp_path / "set" / "notes.txt").write_text("x")
    config = tiny.config("d2mae_thyroid", data__name="dicom", data__root=str(tmp_path / "set"), data__crop="none")
    inspect.run(config, tmp_path / "run")
    listed = (tmp_path / "run" / "inspection" / "skipped.csv").read_text()
    privacy.use(tmp_path / "run")
    assert dicom.file_name("notes.txt") in listed
    privacy.use(None)
