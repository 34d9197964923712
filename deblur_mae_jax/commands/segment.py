"""Segment new images with a segmentation run: `main.py --mode=predict --workdir=RUN --input=FOLDER`."""

from __future__ import annotations

import ast
import csv
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax import api, sharding
from deblur_mae_jax import network as networks
from deblur_mae_jax.commands import new_images
from deblur_mae_jax.commands.unfinished import Unfinished, key_of
from deblur_mae_jax.config import DECODING, flat
from deblur_mae_jax.data import buckets
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.grid import is_label_map, output_path
from deblur_mae_jax.data.index import Index
from deblur_mae_jax.data.loader import Loader
from deblur_mae_jax.data.source import BadImage, Skipped
from deblur_mae_jax.errors import NotSaved, UserError, one_line, unknown
from deblur_mae_jax.inference import levels as levels_of_images
from deblur_mae_jax.inference.arrays import as_list
from deblur_mae_jax.inference.segmenter import Segmenter
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.training.progress import Progress

TABLE, HEADER = "segmentations.csv", ["image", "label", "size", "unit", "file"]
# Preprocessing fields, which must be the same for all members of an ensemble.
PREPARATION = (
    "image_size", "task.degrade", "task.blur_site", "search.setting", "search.high_pass",
    "data.mean", "data.std", "data.frames",
    *(f"data.{name}" for name in DECODING if name not in ("max_pixels", "mask_values")),
)  # fmt: skip


WINDOWS = ("overlap", "blending")  # fields of config.infer that say how windows over a volume are joined


def infer_fields(config: ConfigDict, text: str) -> ConfigDict:
    """Override fields of `config.infer` with those of `text`, such as "flips=True,overlap=0.7"."""
    infer = ConfigDict(config.infer.to_dict())
    for setting in filter(str.strip, text.split(",")):
        name, _, value = (piece.strip() for piece in setting.partition("="))
        if name not in infer:
            raise unknown("--infer", name, infer.keys())
        if name in WINDOWS and networks.identify(config).axes == 2:
            raise UserError(f"--infer: {name} is for volumes; an image is predicted at once")
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
        searchers = [one.searcher.weights_hash if one.searcher is not None else "" for one in (member, first)]
        if same and member is not first and searchers[0] != searchers[1]:
            raise UserError(
                f"--workdir: '{folder}' and '{folders[0]}' search the blur of an image with different networks, so one "
                "level does not fit both; predict with each and join the label maps"
            )
        if not same:
            raise UserError(
                f"--workdir: '{folder}' differs in labels, network or preprocessing from "
                f"'{folders[0]}': they cannot be averaged"
            )
    return members


def run(folders: list[str], images: str, output: str = "", infer: str = "") -> Path:
    """Segment every image of a folder or CSV with one run or the mean of several. Returns the output folder.

    A volume is written as NIfTI on its original grid and a 2-D image as PNG, with the values that are printed.
    `segmentations.csv` in the same folder lists the size of every label, and `skipped.csv` the files that cannot be
    used. An interrupted prediction goes on when it is started again.

    folders: workdirs or weight files.
    images: a folder of images, or a CSV.
    output: a folder; `segmentations/new` of the first run by default.
    infer: fields of `config.infer`, such as "flips=True,overlap=0.7".
    """
    progress, members = Progress(), load_members(folders)
    first, target = members[0], buckets.Output(output or f"{folders[0]}/segmentations/new", "--output")
    out = target.path
    _need_own_folder(out)
    fields = infer_fields(first.config, infer)
    segmenter = Segmenter(first.network, sharding.make_mesh(), fields)
    progress.print(f"values      {_legend(first)}")
    new_images.make_folder(out)
    index = new_images.index_of(first, images, progress)
    paths = _paths(out, index, suffix := ".nii.gz" if first.network.axes == 3 else ".png")
    before = Unfinished(out / "unfinished.jsonl", index, key_of(members, fields.to_dict()))
    written = _written(before, out, paths, suffix)
    if written:
        progress.print(f"{len(written)} of {len(index)} images were segmented before; the prediction goes on")
    wanted = [number for number in range(len(index)) if number not in written]
    loader = Loader(index, first.config.model.in_chans, _no_levels(first, index))
    skipped, unwritten = list(index.skipped), list[Skipped]()
    with open(out / TABLE, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerows([HEADER, *itertools.chain(*written.values())])
        file.flush()
        for number, labels in _segmented(segmenter, members, loader, wanted):
            try:
                rows = _save(index, number, labels, paths[number], first)
            except (BadImage, OSError, MemoryError) as error:
                unwritten.append(Skipped(index.source.names[number], _unwritten(error)))
                continue
            for row in rows:
                row[-1] = row[-1].relative_to(out).as_posix()
            table.writerows(rows)
            file.flush()  # a stopped prediction leaves the rows of the label maps that it leaves
            before.add({number: rows})
            written[number] = rows
            progress.update(f"segmenting: {number + 1} of {len(index)}")
    with open(out / TABLE, "w", newline="", encoding="utf-8") as file:  # in the order of the images
        csv.writer(file).writerows([HEADER, *itertools.chain(*(written[number] for number in sorted(written)))])
    skipped += loader.failed + unwritten
    if skipped or (out / "skipped.csv").exists():  # that of an earlier prediction is replaced
        data_index.write_skipped(out / "skipped.csv", skipped)
    if skipped:
        progress.print(f"{len(skipped)} files left out, see {target.shown(out / 'skipped.csv')}")
    if unwritten:
        raise NotSaved(f"--output: {len(unwritten)} label maps are not written (skipped.csv); start again to go on")
    before.remove()
    target.send()
    progress.print(f"{len(written)} images, label maps in {target.shown(out)}")
    return out


def _need_own_folder(out: Path) -> None:
    """Raise `UserError` if label maps cannot go there, or would replace a list that no prediction wrote."""
    if out.suffix in (".csv", ".gz", ".nii", ".png"):
        raise UserError(f"--output: '{out}' must be a folder for the label maps")
    if (out / "skipped.csv").exists() and not (out / TABLE).exists():
        raise UserError(
            f"--output: '{out}' holds the skipped.csv of something else, such as a run; name another folder"
        )


def _unwritten(error: Exception) -> str:
    return f"its label map cannot be written: {getattr(error, 'strerror', None) or one_line(error)}"


def _legend(trained: TrainedNetwork) -> str:
    """The value of every class in a label map.

    These are the values of the training masks, or 1, 2, ... if `config.data.mask_values` of the run named them.
    """
    named = zip(trained.mask_values or [], trained.classes, strict=False)
    return ", ".join(f"{value} {name}" for value, name in named)


def _save(index: Index, number: int, labels: np.ndarray, path: Path, trained: TrainedNetwork) -> list[list[Any]]:
    """Write the label map of an image, and return its rows of the table; the last value of each is the path written."""
    grid, name = index.source.grid_of(number), index.source.names[number]
    values = np.array(trained.mask_values, np.uint8)
    label_map = grid.finish(labels)
    whole = label_map if index.source.whole is None else index.source.whole(number)(label_map)
    written = grid.save(values[whole], path)
    unit = f"{grid.unit}{trained.network.axes}" if grid.unit == "mm" else grid.unit
    counted = label_map if grid.unit == "mm" else whole  # the size of a pixel in mm is that of one as read
    sizes = float(np.prod(grid.spacing)) * np.bincount(counted.ravel(), minlength=len(values))[1:]
    return [[name, label, float(size), unit, written] for label, size in zip(trained.classes[1:], sizes, strict=True)]


def _written(before: Unfinished, out: Path, paths: list[Path], suffix: str) -> dict[int, list[list[Any]]]:
    """The rows of the label maps that an interrupted prediction wrote and that are still there, by image."""
    found = {}
    for number, rows in before.results().items():
        file_path = paths[number].with_name(paths[number].name + suffix)
        if file_path.exists() and all(row[-1] == file_path.relative_to(out).as_posix() for row in rows):
            found[number] = rows
    return found


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


def _no_levels(trained: TrainedNetwork, index: Index) -> dict[str, np.ndarray]:
    """A level for every image, in the form a `Loader` expects, to be found; empty for networks without levels."""
    if trained.network.axes == 3 or not trained.network.inputs.degradation.num_levels:
        return {}
    return {"level": np.ones(len(index), np.int32)}


def _segmented(
    segmenter: Segmenter, members: list[TrainedNetwork], loader: Loader, wanted: list[int]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (number, classes) of every readable image.

    The blur levels of a few images are found before these are segmented, so that a prediction that is stopped has lost
    no other search.
    """
    weights = [member.params for member in members]
    for start in range(0, len(wanted), new_images.CHUNK):
        part = wanted[start : start + new_images.CHUNK]
        if "level" in loader.extras:
            # An image that can no longer be read keeps level 1; the loader reports it.
            for numbers, images in new_images.chunks(loader.index, [], part):
                given = levels_of_images.given(members[0], as_list(images), None, loader.index.canvas)
                assert given is not None
                loader.extras["level"][numbers] = given
        yield from segmenter.each(weights, loader, part)
