"""Predicting new images: what is written, what is never overwritten, what is said."""

import csv
import dataclasses
import json
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from dicom_files import still
from PIL import Image
from tiny_runs import classifier, stirred

import deblur_mae_jax as dm
from deblur_mae_jax.commands import new_images, predict, segment
from deblur_mae_jax.data import grid, privacy
from deblur_mae_jax.errors import NotSaved, UserError
from deblur_mae_jax.inference import levels as levels_of_images
from deblur_mae_jax.pretrained import trained_network


def pictures(folder, count=4):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        Image.fromarray(rng.integers(0, 255, (20 + number, 24), np.uint8)).save(folder / f"{number}.png")
    return folder


def rows(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory):
    """A weight file of a network that outlines lesions."""
    path = tmp_path_factory.mktemp("segmenter") / "lesions.safetensors"
    network = stirred("segment_images")
    trained_network.save_file(path, dataclasses.replace(network, mask_values=[0, 255]))
    return path


def test_label_maps_do_not_replace_the_images(segmenter, tmp_path):
    images = pictures(tmp_path / "images")
    before = {path: path.read_bytes() for path in images.iterdir()}
    with pytest.raises(UserError, match=r"--output: '.*0\.png' exists and is not a label map.*another folder"):
        predict.run(segmenter, str(images), images)
    assert {path: path.read_bytes() for path in images.iterdir() if path in before} == before
    out = predict.run(segmenter, str(images), tmp_path / "out")
    assert len(rows(out / "segmentations.csv")) == 4
    assert predict.run(segmenter, str(images), tmp_path / "out") == out  # its own may be replaced


def test_one_image_is_predicted(segmenter, tmp_path):
    image = pictures(tmp_path / "images", 1) / "0.png"
    out = predict.run(segmenter, str(image), tmp_path / "out")
    assert [row["image"] for row in rows(out / "segmentations.csv")] == ["0.png"] and (out / "0.png").exists()
    (tmp_path / "notes.doc").write_text("x")
    with pytest.raises(UserError, match=r"--input: '.*notes\.doc' is no image and no CSV"):
        predict.run(segmenter, str(tmp_path / "notes.doc"), tmp_path / "out")


def test_no_flag_of_training_is_advised(tmp_path, capsys):
    for patient in "123":
        for side in "lr":
            Image.new("L", (20, 20)).save(tmp_path / f"bus_{patient}-{side}.png")
    predict.run(classifier()[0], str(tmp_path), tmp_path / "out.csv")
    said = capsys.readouterr().err
    assert "a CSV with a column 'group' makes 3 patients of 6 images" in said and "group_pattern" not in said


def test_a_table_does_not_replace_the_list_of_the_images(tmp_path):
    pictures(tmp_path / "images")
    listed = tmp_path / "list.csv"
    listed.write_text("path\nimages/0.png\nimages/1.png\n")
    with pytest.raises(UserError, match=r"--output: '.*list\.csv' exists and is not a table of predictions"):
        predict.run(classifier()[0], str(listed), listed)
    assert listed.read_text().startswith("path\n")
    for _ in range(2):
        assert len(rows(predict.run(classifier()[0], str(listed), tmp_path / "out.csv"))) == 2
    for name in ("own_metrics.json", "own_skipped.csv"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(UserError, match=rf"--output: '.*{name}', which is written beside 'own.csv', exists"):
            predict.run(classifier()[0], str(listed), tmp_path / "own.csv")
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()


def test_label_maps_do_not_replace_the_list_of_a_run(segmenter, tmp_path):
    (tmp_path / "skipped.csv").write_text("name,reason\nx.png,damaged\n")
    with pytest.raises(UserError, match=r"holds the skipped\.csv of something else"):
        predict.run(segmenter, str(pictures(tmp_path / "images", 1)), tmp_path)
    assert "x.png" in (tmp_path / "skipped.csv").read_text()


@pytest.fixture
def stopped_after(monkeypatch):
    """`stopped_after(calls, module, name)`: the function is interrupted after some calls; later calls are counted."""

    def patch(allowed, module, name):
        real, calls = getattr(module, name), []

        def counted(*arguments, **options):
            calls.append(arguments)
            if len(calls) == allowed + 1:
                raise KeyboardInterrupt
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, counted)
        return calls

    return patch


def test_a_classification_that_was_interrupted_goes_on(tmp_path, monkeypatch, stopped_after, capsys):
    images, run = pictures(tmp_path / "images", 6), classifier()[0]
    monkeypatch.setattr(new_images, "CHUNK", 2)
    whole = predict.run(run, str(images), tmp_path / "whole.csv").read_bytes()
    out, kept = tmp_path / "out.csv", tmp_path / "out_unfinished.jsonl"
    calls = stopped_after(2, predict.api, "predict")
    with pytest.raises(KeyboardInterrupt):
        predict.run(run, str(images), out)
    interrupted = kept.read_text()
    assert not out.exists() and interrupted.count("state") == 4
    assert predict.run(run, str(images), out).read_bytes() == whole
    assert len(calls) == 4 and not kept.exists()  # two, the one that was interrupted, and the third
    assert "4 of 6 images were predicted before; the prediction goes on" in capsys.readouterr().err

    kept.write_text(interrupted[:-9])  # the last line is incomplete
    shutil.copyfile(images / "1.png", images / "0.png")  # and one image is another one
    predict.run(run, str(images), out)
    assert "2 of 6 images were predicted before" in capsys.readouterr().err
    first, second, *_ = rows(out)
    assert float(first["p_benign"]) == pytest.approx(float(second["p_benign"]), abs=1e-6)
    kept.write_text(interrupted.replace('"key": "', '"key": "of other weights '))
    predict.run(run, str(images), out)
    assert "were predicted before" not in capsys.readouterr().err


def test_a_segmentation_that_was_interrupted_goes_on(segmenter, tmp_path, stopped_after, capsys):
    images, out = pictures(tmp_path / "images"), tmp_path / "out"
    whole = predict.run(segmenter, str(images), tmp_path / "whole")
    calls = stopped_after(2, grid, "save_image")
    with pytest.raises(KeyboardInterrupt):
        predict.run(segmenter, str(images), out)
    (out / "0.png").unlink()  # somebody moved it away
    predict.run(segmenter, str(images), out)
    assert "1 of 4 images were segmented before; the prediction goes on" in capsys.readouterr().err
    assert len(calls) == 3 + 3 and not (out / "unfinished.jsonl").exists()
    assert (out / "segmentations.csv").read_bytes() == (whole / "segmentations.csv").read_bytes()
    for number in range(4):
        assert (out / f"{number}.png").read_bytes() == (whole / f"{number}.png").read_bytes()


def test_levels_are_searched_a_few_images_at_a_time(tmp_path, monkeypatch):
    """A segmentation that is stopped has not searched the levels of all images for nothing."""
    searched = []

    def given(trained, images, level, canvas):
        searched.append(len(images))
        return np.full(len(images), 3)

    def each(weights, loader, numbers):
        for number in numbers:
            yield number, loader.extras["level"][number]

    monkeypatch.setattr(new_images, "CHUNK", 2)
    monkeypatch.setattr(segment.levels_of_images, "given", given)
    source = SimpleNamespace(read=lambda number: np.zeros((4, 4, 1), np.uint8), names=list("abcde"))
    index = SimpleNamespace(source=source, canvas=(4, 4))
    loader = SimpleNamespace(index=index, extras={"level": np.ones(5, np.int32)})
    member = SimpleNamespace(params=None)
    found = segment._segmented(SimpleNamespace(each=each), [member], loader, [0, 1, 3, 4])
    assert next(found) == (0, 3) and searched == [2]
    assert list(found) == [(1, 3), (3, 3), (4, 3)] and searched == [2, 2]
    assert loader.extras["level"].tolist() == [3, 3, 1, 3, 3]


def test_an_image_that_vanishes_is_left_out_and_the_others_are_predicted(tmp_path, monkeypatch):
    images, run = pictures(tmp_path / "images"), classifier()[0]
    check = predict.new_images.index_of

    def then_lost(*arguments):
        index = check(*arguments)
        (images / "1.png").unlink()
        return index

    monkeypatch.setattr(predict.new_images, "index_of", then_lost)
    out = predict.run(run, str(images), tmp_path / "out.csv")
    assert [row["image"] for row in rows(out)] == ["0.png", "2.png", "3.png"]
    assert [row["name"] for row in rows(tmp_path / "out_skipped.csv")] == ["1.png"]
    monkeypatch.undo()
    predict.run(classifier()[0], str(images), tmp_path / "out.csv")
    assert rows(tmp_path / "out_skipped.csv") == []  # the list is that of this prediction


def test_a_label_map_that_cannot_be_written_does_not_end_the_others(segmenter, tmp_path, monkeypatch):
    images, save = pictures(tmp_path / "images"), grid.save_image

    def full(labels, path):
        if path.name == "2":
            raise OSError(28, "No space left on device")
        return save(labels, path)

    monkeypatch.setattr(grid, "save_image", full)
    with pytest.raises(NotSaved, match="1 label maps are not written"):
        predict.run(segmenter, str(images), tmp_path / "out")
    out = tmp_path / "out"
    assert [row["image"] for row in rows(out / "segmentations.csv")] == ["0.png", "1.png", "3.png"]
    assert rows(out / "skipped.csv") == [
        {"name": "2.png", "reason": "its label map cannot be written: No space left on device"}
    ]
    monkeypatch.undo()
    predict.run(segmenter, str(images), tmp_path / "out")
    assert len(rows(out / "segmentations.csv")) == 4 and not (out / "unfinished.jsonl").exists()


def test_a_table_that_cannot_be_written_costs_no_prediction(tmp_path, monkeypatch):
    images, out, run = pictures(tmp_path / "images"), tmp_path / "out.csv", classifier()[0]

    def full(self, path):
        path.write_text("")  # what a full disk leaves
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict.Predictions, "write", full)
    with pytest.raises(NotSaved, match=r"--output: cannot write .*No space left on device; start again to go on"):
        predict.run(run, str(images), out)
    assert not out.exists() and (tmp_path / "out_unfinished.jsonl").exists()
    monkeypatch.undo()
    out.touch()  # an empty file is nobody's table
    assert len(rows(predict.run(classifier()[0], str(images), out))) == 4


def test_names_of_dicom_images_are_those_of_the_run(tmp_path):
    folder = tmp_path / "dicom"
    folder.mkdir()
    still(folder / "a.dcm")
    run = tmp_path / "run"
    shutil.copytree(classifier()[0], run)
    names = []
    for number in range(2):
        privacy._keys.clear()  # as in another process
        names.append(rows(predict.run(run, str(folder), tmp_path / f"{number}.csv"))[0]["image"])
    assert names[0] == names[1] and (run / privacy.KEY_FILE).exists()


def test_a_classifier_without_the_network_of_its_search_says_so(tmp_path):
    run = tmp_path / "run"
    shutil.copytree(classifier()[0], run)
    shutil.rmtree(run / "pretrained")
    images = pictures(tmp_path / "images")
    with pytest.raises(UserError, match=r"searched with the network that it started from, of which there is no copy"):
        predict.run(run, str(images), tmp_path / "out.csv")


@pytest.mark.parametrize("kind", ["classify", "segment"])
def test_an_image_is_predicted_alike_whatever_lies_before_it(kind, tmp_path):
    noise = {"task__degrade": "noise.gaussian_noise(0.2)", "task__blur_site": "network", "model__conditioning": "none"}
    network = stirred("finetune" if kind == "classify" else "segment_images", **noise)
    images = [np.asarray(Image.open(path)) for path in sorted(pictures(tmp_path / "images").iterdir())]
    if kind == "classify":
        np.testing.assert_allclose(dm.predict(network, images)[1:], dm.predict(network, images[1:]), atol=1e-6)
    else:
        apart = [dm.segment(network, images, batch_size=size) for size in (3, 2)]
        for one, other in zip(*apart, strict=True):
            np.testing.assert_array_equal(one, other)


def test_a_random_level_belongs_to_the_image(tmp_path):
    network = stirred("finetune", search__setting="random", task__degrade="blur.gaussian_levels(max_sigma=1.1)")
    images = [np.asarray(Image.open(path)) for path in sorted(pictures(tmp_path / "images", 8).iterdir())]
    levels = levels_of_images.of_run(network, [image[..., None] for image in images])
    assert len(set(levels.tolist())) > 2
    again = levels_of_images.of_run(network, [image[..., None] for image in images[::-1][:5]])
    assert again.tolist() == levels[::-1][:5].tolist()


def test_the_predictions_that_judged_a_run_are_not_replaced(tmp_path):
    folder = classifier()[0]
    pictures(tmp_path / "images")
    before = (folder / "predictions.csv").read_bytes()
    with pytest.raises(UserError, match="holds the predictions by which a run was judged"):
        predict.run(folder, str(tmp_path / "images"), folder / "predictions.csv")
    assert (folder / "predictions.csv").read_bytes() == before


def test_a_run_that_is_not_finished_is_said(tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(classifier()[0], copied)
    assert not trained_network.load(copied).notes
    result = json.loads((copied / "result.json").read_text())
    (copied / "result.json").write_text(json.dumps(result | {"finished": False}))
    assert f"is not finished: it was stopped at step {result['step']}" in trained_network.load(copied).notes[0]
    (copied / "result.json").unlink()
    assert "it holds no result.json" in trained_network.load(copied).notes[0]


def test_a_label_map_has_the_pixels_of_the_file(segmenter, tmp_path):
    """Also where the image was shrunk, turned or cut when it was read."""
    images, rng = pictures(tmp_path / "images", 1), np.random.default_rng(0)
    wide = Image.fromarray(rng.integers(0, 255, (300, 1200), np.uint8))
    wide.save(images / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored on its side
    wide.save(images / "turned.jpg", exif=exif)
    out = predict.run(segmenter, str(images), tmp_path / "out")
    sizes = {path.stem: np.asarray(Image.open(path)).shape for path in out.glob("*.png")}
    assert sizes == {"0": (20, 24), "wide": (300, 1200), "turned": (1200, 300)}
    for row in rows(out / "segmentations.csv"):
        marked = np.asarray(Image.open(out / row["file"])) > 0
        assert float(row["size"]) == marked.sum() and row["unit"] == "px"


def test_a_label_map_of_a_cut_dicom_picture_has_the_pixels_of_the_file(segmenter, tmp_path):
    folder = tmp_path / "dicom"
    folder.mkdir()
    pixels = np.zeros((80, 90), np.uint8)
    pixels[10:70, 20:84] = np.random.default_rng(0).integers(40, 255, (60, 64))
    still(folder / "a.dcm", pixels, PixelSpacing=[0.5, 0.25])
    out = predict.run(segmenter, str(folder), tmp_path / "out")
    (row,) = rows(out / "segmentations.csv")
    labels = np.asarray(Image.open(out / row["file"]))
    assert labels.shape == (80, 90) and not labels[:10].any() and not labels[:, :20].any()
    assert row["unit"] == "mm2" and float(row["size"]) == pytest.approx((labels > 0).sum() * 0.125)


def test_a_stopped_prediction_is_started_again(segmenter, tmp_path, monkeypatch):
    images, save = pictures(tmp_path / "images"), grid.save_image
    predict.run(segmenter, str(images), tmp_path / "out")

    def stopped(labels, path):
        if path.name == "2":
            raise KeyboardInterrupt
        return save(labels, path)

    monkeypatch.setattr(grid, "save_image", stopped)
    with pytest.raises(KeyboardInterrupt):
        predict.run(segmenter, str(images), tmp_path / "out")
    assert len(rows(tmp_path / "out" / "segmentations.csv")) == 2
    (tmp_path / "out" / "segmentations.csv").write_text("")  # killed before the first row
    monkeypatch.undo()
    predict.run(segmenter, str(images), tmp_path / "out")
    assert len(rows(tmp_path / "out" / "segmentations.csv")) == 4


def test_a_saved_label_map_is_recognised(tmp_path):
    labels = np.zeros((4, 5), np.uint8)
    ours = [grid.save_image(labels, tmp_path / "a"), grid.save_volume(labels[None], tmp_path / "a")]
    Image.fromarray(labels).save(tmp_path / "b.png")
    (tmp_path / "c.nii.gz").write_bytes(b"damaged")
    nib.save(nib.Nifti1Image(labels[None], np.eye(4)), tmp_path / "d.nii.gz")
    assert all(grid.is_label_map(path) for path in ours)
    assert not any(grid.is_label_map(tmp_path / name) for name in ("b.png", "c.nii.gz", "d.nii.gz", "none.png"))


def test_the_key_of_dicom_names_is_not_copied_to_an_address_or_into_an_export(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    assert predict._key_folder(str(run), tmp_path / "x.csv") == run
    assert predict._key_folder(str(tmp_path / "w.safetensors"), tmp_path / "out") == tmp_path / "out"
    assert predict._key_folder(str(tmp_path / "w.safetensors"), tmp_path / "x.csv") == tmp_path
    assert predict._key_folder("gs://bucket/run", tmp_path / "x.csv") == tmp_path
    assert predict._key_folder("gs://bucket/run", "gs://bucket/x.csv") is None


def test_images_that_a_run_has_seen_are_named(tmp_path):
    (tmp_path / "pretrained").mkdir()
    entries = {name: {"hash": name} for name in ("one", "two")}
    (tmp_path / "index.json").write_text(json.dumps({"entries": entries}))
    (tmp_path / "pretrained" / "image_hashes.json").write_text(json.dumps(["two", "three"]))
    said = new_images._trained_on(
        SimpleNamespace(path=tmp_path), SimpleNamespace(hashes=["one", "two", "three", "four", ""])
    )
    assert [line.split(":")[0] for line in said] == [
        "this run has seen 2 of these images (training, validation or test)",
        "its pre-training has seen 1 of them",
    ]
    assert (
        new_images._trained_on(SimpleNamespace(path=tmp_path / "file.safetensors"), SimpleNamespace(hashes=["one"]))
        == []
    )


def test_labels_of_another_spelling_are_known_and_strange_ones_are_said(tmp_path, capsys):
    pictures(tmp_path / "images")
    listed = tmp_path / "list.csv"
    cells = ("Benign", " MALIGNANT", "cyst", "")
    listed.write_text("path,label\n" + "".join(f"images/{i}.png,{cell}\n" for i, cell in enumerate(cells)))
    found = rows(predict.run(classifier()[0], str(listed), tmp_path / "out.csv"))
    assert [row["label"] for row in found] == ["benign", "malignant", "", ""]
    assert "1 labels are none of the classes benign, malignant, the first 'cyst'" in capsys.readouterr().err


def test_a_csv_that_leaves_open_what_a_prediction_does_not_need_is_read(tmp_path, capsys):
    pictures(tmp_path / "images")
    listed = tmp_path / "list.csv"
    lines = [f"images/{i}.png,P{i},{i},benign,malignant,val" for i in range(4)]
    listed.write_text("\n".join(["path,patient,case_id,diagnosis,pathology,phase", *lines]) + "\n")
    trained = classifier()[0]
    capsys.readouterr()
    found = rows(predict.run(trained, str(listed), tmp_path / "out.csv"))
    assert len(found) == 4 and {row["label"] for row in found} == {""}
    assert "config.data" not in capsys.readouterr().err


def test_a_classifier_is_judged_on_new_images_with_labels(tmp_path, capsys):
    pictures(tmp_path / "images")
    listed = tmp_path / "list.csv"
    listed.write_text("path,label\nimages/0.png,benign\nimages/1.png,malignant\nimages/2.png,\nimages/3.png,benign\n")
    out = predict.run(classifier()[0], str(listed), tmp_path / "out.csv")
    said = capsys.readouterr().err
    assert "judged on the 3 images with a label (patients unknown" in said and "AUROC" in said
    numbers = json.loads((tmp_path / "out_metrics.json").read_text())
    judged = [row for row in rows(out) if row["label"]]
    right = sum(row["label"] == row["predicted"] for row in judged) / 3
    assert numbers["splits"]["new"]["per_image"]["accuracy"]["value"] == pytest.approx(right)
    listed.write_text("path\nimages/0.png\n")
    predict.run(classifier()[0], str(listed), tmp_path / "out.csv")
    assert not (tmp_path / "out_metrics.json").exists()
