"""The grid on which a mask was drawn, and the mapping to it from the grid of `Source.read`."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

MARK = "deblur_mae_jax label map"  # in the files, so that a prediction replaces no others
SUFFIX = re.compile(r"\.(nii(\.gz)?|png|jpe?g|jpe|jfif|bmp|dib|tiff?|gif|webp|p[gpn]m|jp2)$", re.I)


@dataclasses.dataclass(frozen=True)
class Grid:
    """The original grid of one image.

    spacing: size of a voxel or pixel along each axis, in `unit`.
    unit: "mm", or "px" if the size of a pixel is unknown.
    truth: `() -> uint8 (*space)`, the values of the mask file on this grid; raises `BadImage` without a mask.
    finish: resamples a label map from the grid of `read` to this grid (nearest neighbour).
    save: `(label map, path without suffix) -> path of the written file`. That of a volume is on this grid, that of a
        2-D image on the pixels of `read`, or of a new image on those of its file (`Source.whole`).
    affine: from voxels of this grid to RAS coordinates in mm `(4, 4)`. `None`: unknown.
    spacing_read: size of a voxel on the grid of `read`, in `unit`. (): the same as `spacing`.
    """

    spacing: tuple[float, ...]
    unit: str
    truth: Callable[[], np.ndarray]
    finish: Callable[[np.ndarray], np.ndarray]
    save: Callable[[np.ndarray, Path], Path]
    affine: np.ndarray | None = None
    spacing_read: tuple[float, ...] = ()


def resampled_spacing(spacing: tuple[float, ...], shape: tuple[int, ...], new: tuple[int, ...]) -> tuple[float, ...]:
    """The size of a voxel after resampling to another shape, which covers the same space.

    It is not exactly the size that was asked for, because the number of voxels is whole.
    """
    return tuple(size * n / m for size, n, m in zip(spacing, shape, new, strict=True))


def output_path(folder: Path, name: str, taken: set[Path]) -> Path:
    """A unique path, without suffix, for the label map of an image. It is always inside `folder`.

    name: name of the image.
    taken: paths returned before; the new path is added to it.
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
    """Save a label map as an 8-bit PNG file."""
    mark = PngInfo()
    mark.add_text("Software", MARK)
    image = Image.fromarray(labels.astype(np.uint8))
    return written(path.with_name(path.name + ".png"), lambda draft: image.save(draft, pnginfo=mark))


def written(path: Path, save: Callable[[Path], Any]) -> Path:
    """Save a file under a hidden name and rename it, so that a full disk or a stopped process leaves no part of one.

    save: writes the file of the given path, which has the suffix of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    try:
        save(draft)
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    return path


def enlarged(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map with the pixels of another size (H, W), by nearest neighbour."""
    if labels.shape == size:
        return labels
    return np.asarray(Image.fromarray(labels).resize(size[::-1], Image.Resampling.NEAREST))


def save_volume(labels: np.ndarray, path: Path, affine: np.ndarray | None = None) -> Path:
    """Save a label map as a compressed 8-bit NIfTI file."""
    import nibabel as nib

    image = nib.Nifti1Image(labels.astype(np.uint8), np.eye(4) if affine is None else affine)  # type: ignore[no-untyped-call]
    image.header["descrip"] = MARK
    return written(path.with_name(path.name + ".nii.gz"), lambda draft: nib.save(image, draft))


def is_label_map(path: Path) -> bool:
    """Whether `save_image` or `save_volume` wrote this file."""
    try:
        if path.suffix == ".png":
            with Image.open(path) as image:
                return image.info.get("Software") == MARK
        import nibabel as nib

        header: Any = nib.load(path).header  # type: ignore[attr-defined]
        return bytes(header["descrip"]).rstrip(b"\0").decode() == MARK
    except Exception:  # damaged in any way, or another format
        return False


def plain(masks: Callable[[int], np.ndarray], axes: int, index: int) -> Grid:
    """The grid of an image whose mask has the grid of `read`, such as 2-D and simulated images."""

    def save(labels: np.ndarray, path: Path) -> Path:
        return save_image(labels, path) if labels.ndim == 2 else save_volume(labels, path)

    # The pixel size of a 2-D image is unknown; simulated volumes have voxels of 1 mm.
    unit = "px" if axes == 2 else "mm"
    return Grid((1.0,) * axes, unit, lambda: masks(index), lambda labels: labels, save)
