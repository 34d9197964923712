"""Read new images from a folder or a CSV in the same way as the training images of a network."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from deblur_mae_jax.config import copy, flat
from deblur_mae_jax.data import cells, dataset, privacy, summary, volume_file
from deblur_mae_jax.data import table as tables
from deblur_mae_jax.data.decode import EXTENSIONS
from deblur_mae_jax.data.index import Index, hashes_of_index, known_hashes
from deblur_mae_jax.data.listing import existing_root, printable
from deblur_mae_jax.data.packing import INDEX
from deblur_mae_jax.data.source import BadImage, Skipped
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.training.progress import Progress
from deblur_mae_jax.workdir.run_folder import Workdir

CHUNK = 256
TABLES = (".csv", ".tsv", ".txt")
# A flag of training that notes advise; a prediction reads the patients from a CSV.
_PATTERN = re.compile(r'config\.data\.group_pattern="[^"]*"')
_SWITCH = re.compile(r" \(config\.data\.columns='\w+=' turns it off\)")


def index_of(trained: TrainedNetwork, root: str, progress: Progress) -> Index:
    """Index the usable images of `root` and list those left out. Raises `UserError` naming --input."""
    is_3d = trained.network.axes == 3
    alone = _alone(root, is_3d)
    if alone is not None:
        with tempfile.TemporaryDirectory() as folder:
            listed = Path(folder) / "list.csv"
            with open(listed, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
                csv.writer(file).writerows([["path"], [str(alone.resolve())]])
            modality = root[len(root.rpartition("=")[0]) :] if is_3d and not Path(root).expanduser().is_file() else ""
            if is_3d and not modality:
                raise UserError(f"--input: '{root}' does not say its modality; write {root}=ct or {root}=mr")
            index = index_of(trained, f"{listed}{modality}", progress)
        return dataclasses.replace(index, source=dataclasses.replace(index.source, names=[printable(alone.name)]))
    values = {"data.root": root, "data.split": "all", "data.max_bad_fraction": 0.999}
    # These describe the training images, or lie beside them.
    training = ("data.columns", "data.group_pattern", "data.labels", "data.decoded")
    values |= {name: "" for name in training if name in flat(trained.config)}
    if is_3d:
        if (Path(root.rpartition("=")[0] or root) / INDEX).exists():
            raise UserError(f"--input: '{root}' is a packed set of volumes; name the folder or CSV of the volumes")
        place = Path(root.rpartition("=")[0] or root).expanduser()
        if place.is_file() and place.suffix.lower() not in TABLES:
            raise UserError(f"--input: '{root}' is no volume and no CSV; a DICOM series is read from its folder")
        values |= {"data.name": "nifti", "data.check": "pixels"}
        if place.is_file() and "data.columns" in values:
            values["data.columns"] = _columns(place, trained.config.data.columns)
    else:
        path = existing_root(root, "input")
        if path.is_file() and path.suffix.lower() not in TABLES:
            raise UserError(f"--input: '{root}' is no image and no CSV; a DICOM file is read from its folder")
        name = "packed" if (path / INDEX).exists() else "image_folder" if path.is_dir() else "manifest"
        if name == "manifest" and "data.columns" in values:
            values["data.columns"] = _columns(path, trained.config.data.columns)
        values |= {"data.name": name, "data.root": str(path), "data.check": "pixels"}
    try:
        index = dataset.build_index(
            copy(trained.config, values),
            split="all",
            progress=lambda done, total: progress.update(f"checking: {done} of {total}"),
        )
    except UserError as error:
        advice = "config.data.columns='path=NAME' names it"  # a flag of training
        raise UserError(str(error).replace("config.data.root", "--input").replace(advice, "Rename it")) from error
    packed = index.source.checked is not None and not is_3d and trained.network.kind == "segment"
    more = ["the label maps have the size of the packed images, which may be smaller than the files"] if packed else []
    for note in trained.notes + _trained_on(trained, index) + _other_modality(trained, index) + more:
        progress.print(f"note: {note}")
    # What described the training images need not describe these.
    table = [row for row in summary.rows(index) if not re.match(r"config\.data\.\w+=.* is not used: ", row[1])]
    for line in summary.lines([row for row in table if row[0] not in ("splits", "classes", "patients", "masks")]):
        progress.print(_SWITCH.sub("", _PATTERN.sub("a CSV with a column 'group'", line)))
    return index


def _columns(path: Path, trained_with: str) -> str:
    """`config.data.columns` for a CSV of new images: the columns of the training that it has too.

    A prediction needs only the files: of several columns that may be meant as patients the first is used, and none of
    several that may be labels or masks.
    """
    header = {tables.normal(name): name for name in cells.columns_of(path, tables.SYNONYMS)}
    wanted = dict(part.partition("=")[::2] for part in trained_with.split(",") if "=" in part)
    # A column that the training left out stays out.
    chosen = {
        use.strip(): header.get(tables.normal(name), "")
        for use, name in wanted.items()
        if not name.strip() or tables.normal(name) in header
    } | {"split": ""}
    for use in ("group", "label", "mask"):
        candidates = [header[name] for name in tables.COLUMNS[use] if name in header]
        if use not in chosen and len(candidates) > 1 and use not in header:
            chosen[use] = candidates[0] if use == "group" else ""
    return ",".join(f"{use}={name}" for use, name in chosen.items())


def _alone(root: str, volumes: bool) -> Path | None:
    """The image or volume that `root` names by itself; `None` for a folder or a CSV."""
    for text in (root, root.rpartition("=")[0]) if volumes else (root,):
        path = Path(text).expanduser()
        known = volume_file.is_volume(path.name) if volumes else path.suffix.lower() in EXTENSIONS
        if text and known and path.is_file():
            return path
    return None


def _trained_on(trained: TrainedNetwork, index: Index) -> list[str]:
    """A note if a run has seen these images: their predictions do not show how good it is."""
    path = Path(trained.path)
    if not path.is_dir():
        return []
    workdir = Workdir(path)
    own = set(hashes_of_index(workdir.index()) or ())
    before = known_hashes(workdir.pretrained_images) or set()
    counts = [sum(value in hashes for value in index.hashes if value) for hashes in (own, before - own)]
    what = (
        "this run has seen {} of these images (training, validation or test)",
        "its pre-training has seen {} of them",
    )
    return [
        f"{of.format(count)}: do not measure its accuracy on them"
        for count, of in zip(counts, what, strict=True)
        if count
    ]


def _other_modality(trained: TrainedNetwork, index: Index) -> list[str]:
    """A note if volumes have another modality than those of the training."""
    path = Workdir(Path(trained.path)).dataset
    known = json.loads(path.read_text()).get("modalities", []) if path.is_file() else []
    new = sorted(set(index.source.modalities or ()) - set(known))
    return (
        [f"the network was trained on {', '.join(known)}, and these volumes are {', '.join(new)}"]
        if known and new
        else []
    )


def chunks(
    index: Index, skipped: list[Skipped], wanted: Sequence[int] | None = None
) -> Iterator[tuple[list[int], list[np.ndarray]]]:
    """Yield the images of an index, a few at a time, as their numbers and their pixels.

    skipped: images that can no longer be read are left out and added to it.
    wanted: numbers of images; `None`: all.
    """
    every = range(len(index)) if wanted is None else wanted
    for start in range(0, len(every), CHUNK):
        numbers, images = [], []
        for number in every[start : start + CHUNK]:
            try:
                images.append(index.source.read(number))
                numbers.append(number)
            except (BadImage, OSError) as error:
                skipped.append(Skipped(index.source.names[number], str(error)))
        if numbers:
            yield numbers, images


@contextlib.contextmanager
def names(folder: Path | None) -> Iterator[None]:
    """Name DICOM images by the key of this folder, which is made when it is needed; `None`: by a forgotten one."""
    privacy.use(folder)
    try:
        yield
    finally:
        privacy.use(None)


def make_folder(path: Path) -> None:
    """Create a folder for the output, and write to it, before any work. Raises `UserError` naming --output."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"--output: cannot write to '{path}': {error.strerror}") from error
