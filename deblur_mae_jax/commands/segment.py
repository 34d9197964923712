"""Segment new images with a segmentation run: `main.py --mode=predict --workdir=RUN --input=FOLDER`."""

from __future__ import annotations

import ast
import csv
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax import api, sharding
from deblur_mae_jax.commands import new_images
from deblur_mae_jax.config import flat
from deblur_mae_jax.data import buckets
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.grid import is_label_map, output_path
from deblur_mae_jax.data.index import Index
from deblur_mae_jax.data.loader import Loader
from deblur_mae_jax.data.source import BadImage, Skipped
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.inference import levels as levels_of_images
from deblur_mae_jax.inference.arrays import as_list
from deblur_mae_jax.inference.segmenter import Segmenter
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.training.progress import Progress

TABLE, HEADER = "segmentations.csv", ["image", "label", "size", "unit", "file"]
# Preprocessing fields, which must be the same for all members of an ensemble.
PREPARATION = ("image_size", "task.degrade", "task.blur_site", "data.spacing", "data.ct_window", "data.mean",
"data.std",
               "data.max_side", "data.bits16", "search.setting")  # fmt: skip


def infer_fields(config: ConfigDict, text: str) -> ConfigDict:
    """Override fields of `config.infer` with those of `text`, such as "flips=True,overlap=0.7"."""
    infer = ConfigDict(config.infer.to_dict())
    for setting in filter(str.strip, text.split(",")):
        name, _, value = (piece.strip() for piece in setting.partition("="))
        if name not in infer:
            raise unknown("--infer", name, infer.keys())
        try:
            infer[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError):
            try:
                infer[name] = value
            except TypeError as error:
                raise UserError(f"--infer: {name}='{value}' must be like {infer[name]!r}") from error
    return infer


def load_members(folders: list[str]) -> list[TrainedNetwork]:
    """Load the runs of an ensemble; all must be of the same kind."""
    members = [api.load(folder) for folder in folders]
    first = members[0]
    for folder, member in zip(folders, members, strict=True):
        if member.network.kind != "segment":
            raise UserError(f"--workdir: '{folder}' is not a segmentation run")
        same = member.classes == first.classes and member.model == first.model
        same &= member.mask_values == first.mask_values
        values, expected = flat(member.config), flat(first.config)
        same &= all(values.get(name) == expected.get(name) for name in PREPARATION)
        if not same:
            raise UserError(
                f"--workdir: '{folder}' differs in labels, network or preprocessing from "
                f"'{folders[0]}': they cannot be averaged"
            )
    return members


def run(folders: list[str], images: str, output: str = "", infer: str = "") -> Path:
    """Segment every image of a folder or CSV with one run or the mean of several. Returns the output folder.

    A volume is written as NIfTI on its original grid and a 2-D image as PNG, with the values of the training masks.
    `segmentations.csv` in the same folder lists the size of every label, and `skipped.csv` the files that cannot be
    used.

    folders: workdirs or weight files.
    images: a folder of images, or a CSV.
    output: a folder; `segmentations/new` of the first run by default.
    infer: fields of `config.infer`, such as "flips=True,overlap=0.7".
    """
    progress = Progress()
    members = load_members(folders)
    first = members[0]
    target = buckets.Output(output or f"{folders[0]}/segmentations/new", "--output")
    out = target.path
    if out.suffix in (".csv", ".gz", ".nii", ".png"):
        raise UserError(f"--output: '{out}' must be a folder for the label maps")
    fields = infer_fields(first.config, infer)
    segmenter = Segmenter(first.network, sharding.make_mesh(), fields)
    new_images.make_folder(out)
    index = new_images.index_of(first, images, progress)
    paths = _paths(out, index, ".nii.gz" if first.network.axes == 3 else ".png")
    loader = Loader(index, first.config.model.in_chans, _levels(first, index))
    values = np.array(first.mask_values, np.uint8)
    skipped, done = list(index.skipped), 0
    params = [member.params for member in members]
    with open(out / TABLE, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(HEADER)
        file.flush()
        for number, labels in segmenter.each(params, loader, range(len(index))):
            grid, name = index.source.grid_of(number), index.source.names[number]
            label_map = grid.finish(labels)
            try:
                whole = label_map if index.source.whole is None else index.source.whole(number)(label_map)
                path = grid.save(values[whole], paths[number])
            except (BadImage, OSError) as error:
                skipped.append(
                    Skipped(name, f"its label map cannot be written: {getattr(error, 'strerror', None) or error}")
                )
                continue
            unit = f"{grid.unit}{first.network.axes}" if grid.unit == "mm" else grid.unit
            counted = label_map if grid.unit == "mm" else whole  # the size of a pixel in mm is that of one as read
            sizes = float(np.prod(grid.spacing)) * np.bincount(counted.ravel(), minlength=len(values))[1:]
            for label, size in zip(first.classes[1:], sizes, strict=True):
                table.writerow([name, label, float(size), unit, path.relative_to(out).as_posix()])
            file.flush()  # a stopped prediction leaves the rows of the label maps that it leaves
            done += 1
            progress.update(f"segmenting: {number + 1} of {len(index)}")
    skipped += loader.failed
    if skipped or (out / "skipped.csv").exists():  # that of an earlier prediction is replaced
        data_index.write_skipped(out / "skipped.csv", skipped)
    if skipped:
        progress.print(f"{len(skipped)} files left out, see {target.shown(out / 'skipped.csv')}")
    target.send()
    progress.print(f"{done} images, label maps in {target.shown(out)}")
    return out


def _paths(out: Path, index: Index, suffix: str) -> list[Path]:
    """Where the label map of every image is written, without suffix.

    Raises `UserError` if a file is there that no earlier prediction wrote, such as the image itself.
    """
    taken: set[Path] = set()
    paths = [output_path(out, name, taken) for name in index.source.names]
    earlier: set[str] = set()
    if (out / TABLE).exists():
        with open(out / TABLE, newline="", encoding="utf-8", errors="replace") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames not in (HEADER, None):
                raise UserError(f"--output: '{out / TABLE}' is not a table of label maps; name another folder")
            earlier = {row["file"] for row in reader if row["file"]}
    for path in paths:
        file_path = path.with_name(path.name + suffix)
        known = file_path.relative_to(out).as_posix() in earlier
        if file_path.exists() and not known and not is_label_map(file_path):
            raise UserError(
                f"--output: '{file_path}' exists and is not a label map of an earlier prediction; name another folder"
            )
    return paths


def _levels(trained: TrainedNetwork, index: Index) -> dict[str, np.ndarray]:
    """The blur level of every image, in the form a `Loader` expects; empty for networks without levels."""
    if trained.network.axes == 3 or not trained.network.inputs.degradation.num_levels:
        return {}
    levels = np.ones(len(index), np.int32)  # of an image that can no longer be read, which the loader reports
    for numbers, images in new_images.chunks(index, []):
        given = levels_of_images.given(trained, as_list(images), None, index.canvas)
        assert given is not None
        levels[numbers] = given
    return {"level": levels}
