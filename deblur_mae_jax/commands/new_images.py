"""Read new images from a folder or a CSV in the same way as the training images of a network."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from deblur_mae_jax.config import copy
from deblur_mae_jax.data import dataset, summary
from deblur_mae_jax.data.index import Index
from deblur_mae_jax.data.listing import existing_root
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.training.progress import Progress

CHUNK = 256


def index_of(trained: TrainedNetwork, root: str, progress: Progress) -> Index:
    """Index the usable images of `root` and list those left out. Raises `UserError` naming --input."""
    is_3d = trained.network.axes == 3
    values = {"data.root": root, "data.split": "all", "data.max_bad_fraction": 0.999}
    values |= {"data.columns": "", "data.group_pattern": ""}  # they describe the training images
    if is_3d:
        values |= {"data.name": "nifti", "data.check": "pixels"}
    else:
        path = existing_root(root, "input")
        if path.is_file() and path.suffix.lower() != ".csv":
            raise UserError(f"--input: '{root}' is a file; name a folder of images, or a CSV")
        name = "image_folder" if path.is_dir() else "manifest"
        values |= {"data.name": name, "data.root": str(path), "data.check": "pixels"}
    try:
        index = dataset.build_index(
            copy(trained.config, values),
            split="all",
            progress=lambda done, total: progress.update(f"checking: {done} of {total}"),
        )
    except UserError as error:
        raise UserError(str(error).replace("config.data.root", "--input")) from error
    table = summary.rows(index)
    for line in summary.lines([row for row in table if row[0] not in ("splits", "classes", "patients", "masks")]):
        progress.print(line)
    return index


def chunks(index: Index) -> Iterator[tuple[range, list[np.ndarray]]]:
    """Yield the images of an index, a few at a time, as their numbers and their pixels."""
    for start in range(0, len(index), CHUNK):
        numbers = range(start, min(start + CHUNK, len(index)))
        yield numbers, [index.source.read(number) for number in numbers]


def make_folder(path: Path) -> None:
    """Create a folder for the output, and write to it, before any work. Raises `UserError` naming --output."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"--output: cannot write to '{path}': {error.strerror}") from error
