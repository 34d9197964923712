"""The grid that a mask was drawn on, and the way back to it from the grid that `Source.read` gives."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

SUFFIX = re.compile(r"\.(nii(\.gz)?|png|jpe?g|jpe|jfif|bmp|dib|tiff?|gif|webp|p[gpn]m|jp2)$", re.I)


@dataclasses.dataclass(frozen=True)
class Grid:
    """One image's own grid.

    spacing: of its voxels or pixels, in `unit` ("mm", or "px" where the size of a pixel is not known).
    truth:  () -> uint8 `(*space)`, the values of the mask file on this grid; raises `BadImage` without one.
    finish: a label map on the grid of `read` -> the same on this grid (nearest neighbour).
    save:   (label map on this grid, path without suffix) -> the file written, on the voxels of the volume's file, or
            on the pixels of the 2-D image as it was read (`data.max_side`).
    """

    spacing: tuple[float, ...]
    unit: str
    truth: Callable[[], np.ndarray]
    finish: Callable[[np.ndarray], np.ndarray]
    save: Callable[[np.ndarray, Path], Path]


def output_path(folder: Path, name: str, taken: set[Path]) -> Path:
    """Where the label map of an image goes, without a suffix: below `folder`, whatever its name is, and never twice.

    taken: what was given out before.
    """
    folders = [p for p in PurePosixPath(name.replace("\\", "/")).parts if p not in ("/", "..", ".")]
    folders = [p.replace(":", "_") for p in folders] or ["image"]
    stem = SUFFIX.sub("", folders[-1]) or folders[-1]
    path = folder.joinpath(*folders[:-1], stem)
    if path in taken:  # a.png and a.jpg
        path = folder.joinpath(*folders[:-1], folders[-1].replace(".", "_"))
    while path in taken:
        path = path.with_name(path.name + "_2")
    taken.add(path)
    return path


def save_image(labels: np.ndarray, path: Path) -> Path:
    """An 8-bit PNG that holds the values of the map."""
    path = path.with_name(path.name + ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8)).save(path)
    return path


def save_volume(labels: np.ndarray, path: Path, affine: np.ndarray | None = None) -> Path:
    """A compressed NIfTI file of 8-bit values."""
    import nibabel as nib

    path = path.with_name(path.name + ".nii.gz")
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(labels.astype(np.uint8), np.eye(4) if affine is None else affine)  # type: ignore[no-untyped-call]
    nib.save(image, path)
    return path


def plain(masks: Callable[[int], np.ndarray], axes: int, index: int) -> Grid:
    """The grid of an image whose masks have the grid of `read`: 2-D images, and simulated ones."""

    def save(labels: np.ndarray, path: Path) -> Path:
        return save_image(labels, path) if labels.ndim == 2 else save_volume(labels, path)

    # The pixel size of a 2-D image is unknown; simulated volumes have voxels of 1 mm.
    unit = "px" if axes == 2 else "mm"
    return Grid((1.0,) * axes, unit, lambda: masks(index), lambda labels: labels, save)
