"""Classify or segment new images: `main.py --mode=predict --workdir=RUN --input=FOLDER --output=FILE.csv`."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deblur_mae_jax import api
from deblur_mae_jax import network as networks
from deblur_mae_jax.commands import new_images, segment
from deblur_mae_jax.commands.unfinished import Unfinished, key_of
from deblur_mae_jax.data import buckets, grid, spelling
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.index import Index
from deblur_mae_jax.data.source import Skipped
from deblur_mae_jax.errors import NotSaved, UserError, counted
from deblur_mae_jax.inference import blur_search
from deblur_mae_jax.inference import levels as levels_of_images
from deblur_mae_jax.inference.arrays import as_list
from deblur_mae_jax.pretrained import trained_network
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.reports import page, predictions
from deblur_mae_jax.reports.predictions import Predictions
from deblur_mae_jax.training.progress import Progress
from deblur_mae_jax.weight_formats import files
from deblur_mae_jax.workdir import mirror
from deblur_mae_jax.workdir.run_folder import Workdir, write_json


def run(run_folder: str | Path, images: str, output: str | Path = "", infer: str = "") -> Path:
    """Predict label maps (`commands/segment.py`) or class probabilities (`classify`), depending on the run.

    run_folder: a workdir or a weight file; several segmentation runs, "a,b,c", are averaged.
    images: a folder of images, or a CSV.
    output: the CSV to write, or the folder for the label maps.
    infer: fields of `config.infer` for a segmentation, such as "flips=True,overlap=0.7".
    """
    folders = [str(run_folder)]
    if not Path(run_folder).expanduser().exists():
        folders = [name.strip() for name in str(run_folder).split(",") if name.strip()]
    places = [str(mirror.opened(folder, "--workdir")) for folder in folders]
    first = Path(places[0])
    is_file = files.is_weights(first)
    try:
        config = trained_network.load(first, "--workdir").config if is_file else trained_network.read_config(first)
    except UserError as error:
        text = str(error)
        raise UserError(text if text.startswith("--workdir") else f"--workdir: {text}") from error
    if config.task.name == "probe":
        raise UserError(
            f"--workdir: '{first}' is a probe, which keeps no network. Train a head by configs/linear_probe.py"
        )
    if networks.identify(config).kind == "segment":
        output = str(output) or f"{_folder(folders[0])}/segmentations/new"
        with new_images.names(_key_folder(folders[0], output)):
            return segment.run(places, images, output, infer)
    if infer:
        raise UserError("--infer: only segmentation runs have these fields")
    if len(folders) > 1:
        raise UserError("--workdir: only segmentation runs can be averaged")
    output = output or f"{_folder(run_folder)}/predictions_new.csv"
    with new_images.names(_key_folder(folders[0], output)):
        return classify(first, images, output)


def _key_folder(run: str, output: str | Path) -> Path | None:
    """The folder whose key names DICOM images: the run, so that `scripts/find_dicom.py RUN` finds their files again.

    A weight file, or a run that cannot be written to, leaves it to the folder of the output. A key is never copied to
    an address: without a folder on this machine the names cannot be traced.
    """
    if not buckets.is_address(run):
        folder = Path(run).expanduser()
        if Workdir(folder).config.exists() and os.access(folder, os.W_OK):
            return folder
    if buckets.is_address(output):
        return None
    path = Path(output).expanduser()
    return path.parent if path.suffix == ".csv" else path


def _folder(run: str | Path) -> str | Path:
    """Where results are written by default: the run, or the folder of a weight file."""
    if buckets.is_address(run):
        return buckets.folder_of(run)
    path = Path(run).expanduser()
    return path.parent if path.is_file() else run


def classify(run_folder: str | Path, images: str, output: str | Path = "") -> Path:
    """Classify every image of a folder or CSV with the classifier in `run_folder`.

    The images are blurred according to the setting of the run; a D2MAE classifier uses a blur search.
    Files that cannot be used are listed in a CSV next to the table. An interrupted prediction goes on when it is
    started again. Returns the path of the table, `predictions_new.csv` in the run by default.
    """
    progress = Progress()
    trained = api.load(run_folder)
    if not trained.classes:
        raise UserError(f"--workdir: '{run_folder}' is not a classifier; fine-tune it first")
    target = buckets.Output(output or f"{run_folder}/predictions_new.csv", "--output")
    path = target.path
    if path.suffix != ".csv" or path.is_dir():
        raise UserError(f"--output: '{path}' must be a file that ends in .csv")
    _need_own_table(path)
    skipped, judged = (path.with_name(path.stem + end) for end in ("_skipped.csv", "_metrics.json"))
    unfinished = path.with_name(path.stem + "_unfinished.jsonl")
    for beside in (skipped, judged):
        if beside.exists() and not (path.exists() or unfinished.exists()):
            raise UserError(f"--output: '{beside}', which is written beside '{path.name}', exists; name another file")
    new_images.make_folder(path.parent)
    index = new_images.index_of(trained, images, progress)
    left_out = list(index.skipped)
    before = Unfinished(unfinished, index, key_of([trained]))
    table = _table(trained, index, before, progress, left_out)
    try:
        grid.written(path, table.write)
    except OSError as error:  # a full disk: what is predicted is kept
        raise NotSaved(f"--output: cannot write '{path}': {error.strerror or error}; start again to go on") from error
    target.send(path)
    before.remove()
    if left_out or skipped.exists():  # that of an earlier prediction is replaced
        data_index.write_skipped(skipped, left_out)
        target.send(skipped)
    if left_out:
        progress.print(f"{len(left_out)} files left out, see {target.shown(skipped)}")
    predicted = table.probabilities.argmax(1)
    counts = {name: int((predicted == i).sum()) for i, name in enumerate(trained.classes)}
    progress.print(f"{counted(len(table), 'image')}: " + ", ".join(f"{n} {c}" for c, n in counts.items()))
    measures = _judge(table, judged, progress)
    if measures is not None:
        target.send(measures)
        progress.print(f"measures    {target.shown(measures)}")
    progress.print(f"predictions {target.shown(path)}")
    return path


def _judge(table: Predictions, path: Path, progress: Progress) -> Path | None:
    """Measure the classifier on the new images that have a label, print and write the measures; `None` without labels.

    The labels choose nothing here, so that this is a test on other images, such as those of another hospital.
    """
    labelled = table.where(table.labels >= 0)
    if not len(labelled):
        path.unlink(missing_ok=True)  # that of an earlier prediction
        return None
    numbers = predictions.summarise(labelled)
    write_json(path, numbers)
    judged = numbers["splits"][numbers["judged_on"]]
    progress.print(f"judged on the {judged['images']} images with a label {page.of_patients(judged)}")
    for name in ("accuracy", "balanced_accuracy", "f1_macro", "auroc"):
        progress.print(f"  {page.named(name):20s} {page.cell(judged['per_image'][name])}")
    return path


def _need_own_table(path: Path) -> None:
    """Raise `UserError` if `path` is a file that no prediction wrote, such as the list of the images."""
    if not path.exists():
        return
    with open(path, "rb") as file:
        header = file.readline()
    if header and not header.startswith(b"image,group,split,label,predicted"):
        raise UserError(f"--output: '{path}' exists and is not a table of predictions; name another file")
    with open(path, newline="", encoding="utf-8", errors="replace") as table:
        splits = {row.get("split") for row in csv.DictReader(table)}
    if splits - {"new"}:
        raise UserError(f"--output: '{path}' holds the predictions by which a run was judged; name another file")


def _table(
    trained: TrainedNetwork, index: Index, before: Unfinished, progress: Progress, left_out: list[Skipped]
) -> Predictions:
    """Predict the images that were not predicted before, and return the table of all."""
    results = before.results()  # by number: probabilities and blur level
    if results:
        progress.print(f"{len(results)} of {len(index)} images were predicted before; the prediction goes on")
    wanted = [number for number in range(len(index)) if number not in results]
    for numbers, images in new_images.chunks(index, left_out, wanted):
        level = levels_of_images.of_run(trained, as_list(images), index.canvas)
        found = api.predict(trained, images, level=level, canvas=index.canvas).tolist()
        by_level = [0] * len(found) if level is None else level.tolist()
        new = {n: [p, at] for n, p, at in zip(numbers, found, by_level, strict=True)}
        before.add(new)
        results |= new
        progress.update(f"predicting: {numbers[-1] + 1} of {len(index)}")
    if not results:
        raise UserError("--input: none of the images can be read any more")
    kept = sorted(results)
    level = np.array([results[number][1] for number in kept])
    sigma = np.full(len(kept), np.nan)
    by_level = blur_search.all_sigmas(trained.network.inputs.degradation)
    if len(by_level):
        sigma = by_level[level - 1]
    classes = trained.classes
    numbers = _known_labels(index.source.labels or [""] * len(index), classes, progress)
    return Predictions(
        classes,
        np.array(index.source.names)[kept],
        np.array(index.source.groups or [""] * len(index))[kept],
        np.full(len(kept), "new"),
        np.array(numbers)[kept],
        np.array([results[number][0] for number in kept]),
        level,
        sigma,
    )


def _known_labels(labels: Sequence[str], classes: list[str], progress: Progress) -> list[int]:
    """The class of every image, -1 for one without a label. Capitals, and 1 beside 1.0, do not count."""
    keys = [spelling.key(name) for name in classes]
    numbers = [keys.index(spelling.key(name)) if spelling.key(name) in keys else -1 for name in labels]
    strange = [name for name, number in zip(labels, numbers, strict=True) if name and number < 0]
    if strange:
        progress.print(
            f"note: {len(strange)} labels are none of the classes {', '.join(classes)}, the first '{strange[0]}'; "
            "these images count as unlabelled"
        )
    return numbers
