"""A folder of images, flat or with one sub-folder per class."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.data.decode import BITS16, EXTENSIONS, Decoder
from deblur_mae_jax.data.source import BadImage, Skipped, Source
from deblur_mae_jax.errors import UserError, unknown

AXES = 2  # of its images

SPLIT_FOLDERS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test", "pool": "pool",
}  # fmt: skip


# A folder that holds the masks of the images beside it, under the same names.
MASK_FOLDER = "masks"


@dataclasses.dataclass(frozen=True)
class Files:
    """Read a list of image files. All file-based sources of 2-D images use it."""

    paths: list[str]
    decoder: Decoder

    def read(self, index: int) -> np.ndarray:
        """Decoded pixels of one file."""
        return self.decoder(Path(self.paths[index]))

    def header(self, index: int) -> tuple[int, int]:
        """(H, W) of one file."""
        return self.decoder.header(Path(self.paths[index]))

    def stamp(self, index: int) -> list[int] | None:
        """Size and modification time."""
        return stamp_of(self.paths[index])


@dataclasses.dataclass(frozen=True)
class Masks:
    """Read the masks of `images`.

    paths: mask file of each image, or "" if it has no mask.
    """

    paths: list[str]
    images: Files

    def stamp(self, index: int) -> list[Any]:
        """Name, size and modification time."""
        return [
            self.paths[index],
            stamp_of(self.paths[index]) if self.paths[index] else None,
        ]

    def fields(self) -> dict[str, Any]:
        """The mask fields of a `Source`. Empty if no image has a mask."""
        if not any(self.paths):
            return {}
        return {
            "masks": self.read,
            "masked": [bool(p) for p in self.paths],
            "mask_stamp": self.stamp,
        }

    def read(self, index: int) -> np.ndarray:
        """The values of a mask file on the pixel grid of `images.read`, uint8 `(H, W)`."""
        if not self.paths[index]:
            raise BadImage("it has no mask")
        return self.images.decoder.mask(Path(self.paths[index]), Path(self.images.paths[index]))


def stamp_of(path: str) -> list[int] | None:
    """Size and modification time of a file. `None` if it does not exist."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]


def existing_root(root: str, field: str = "config.data.root") -> Path:
    """Convert `root` to a path. Raises `UserError` if it does not exist."""
    if not root:
        raise UserError(f"{field} is not set: give the images with --{field}=/path/to/images")
    path = Path(root).expanduser()
    if not path.exists():
        raise UserError(f"{field}: '{root}' does not exist")
    return path


def source(data, channels: int) -> Source:
    """Every image below `data.root`, sorted by relative path.

    A file without an image extension is opened to check whether it is an image. If not, it is listed
    as skipped. The class of an image is the name of its first sub-folder. If all first sub-folders are
    splits (train, val, test, pool), only the splits named in `data.split` are used, and the class is
    the name of the second sub-folder. Sub-folders named `masks` hold masks instead of images: the mask
    of `benign/a.jpg` is `masks/benign/a.png`, and that of `images/a.jpg` is `masks/a.png`, with any suffix.
    """
    root = existing_root(data.root)
    if not root.is_dir():
        raise UserError(f"config.data.root: '{data.root}' is a file; for a CSV add --config.data.name=manifest")
    decoder = decoder_of(data, channels)
    names, skipped, masks = [], [], {}
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(d for d in folders if not d.startswith("."))
        for file in sorted(files):
            if file.startswith("."):
                continue
            path = Path(folder, file)
            name = path.relative_to(root).as_posix()
            path_parts = name.split("/")
            if MASK_FOLDER in path_parts[:-1]:
                masks[Path(*(p for p in path_parts if p != MASK_FOLDER)).with_suffix("").as_posix()] = path
                continue
            if path.suffix.lower() not in EXTENSIONS:
                try:
                    decoder.header(path)
                except BadImage:
                    kind = "DICOM, convert it to PNG" if path.suffix.lower() == ".dcm" else "no image"
                    skipped.append(Skipped(name, f"not an image file ({kind})"))
                    continue
            names.append(name)
    names.sort()
    firsts = {n.split("/")[0] if "/" in n else "" for n in names}
    depth = 0
    if firsts and all(first.lower() in SPLIT_FOLDERS for first in firsts):
        wanted = {name for name in data.split.split("+") if name and name != "all"}
        present = {SPLIT_FOLDERS[first.lower()] for first in firsts}
        if wanted and not wanted & present:
            raise UserError(
                f"config.data.split: '{data.split}' is not a split of '{root}'. "
                f"Choices: {', '.join(sorted(present))}, all."
            )
        depth = 1
        if wanted:
            names = [n for n in names if SPLIT_FOLDERS[n.split("/")[0].lower()] in wanted]
    reader = Files([str(root / name) for name in names], decoder)
    labelled = [n.split("/")[depth] if n.count("/") > depth else "" for n in names]
    cases = [Path(name).with_suffix("").as_posix() for name in names]
    mask_paths = [masks.get(case) or masks.get(case.replace("images/", "", 1)) or "" for case in cases]
    return Source(
        names,
        reader.read,
        reader.header,
        reader.stamp,
        labels=labelled if any(labelled) else None,
        **Masks([str(path) for path in mask_paths], reader).fields(),
        skipped=skipped,
    )


def decoder_of(data, channels: int) -> Decoder:
    """The decoder that the fields of `config.data` describe."""
    if data.bits16 not in BITS16:
        raise unknown("config.data.bits16", data.bits16, BITS16)
    return Decoder(
        channels=channels,
        max_pixels=data.max_pixels,
        max_side=data.max_side,
        min_side=data.min_side,
        bits16=data.bits16,
    )
