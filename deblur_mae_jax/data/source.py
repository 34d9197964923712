"""The definition of a data set: names of images, and functions that read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from deblur_mae_jax.data import grid


class BadImage(Exception):
    """Raised for an image that cannot be used. The message gives the reason for `skipped.csv`."""


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An entry that was left out.

    damaged: whether it should have been an image, so that it counts for `config.data.max_bad_fraction`.
    """

    name: str
    reason: str
    damaged: bool = False


@dataclasses.dataclass(frozen=True)
class Checked:
    """What the pre-flight check found when the images were packed, so that a run does not repeat it.

    sizes: (H, W) or (D, H, W) of each image `(N, 2)` or `(N, 3)`.
    hashes: hash of the pixels of each image.
    masks: hash of each mask.
    mask_values, edge_values: as in `index.Index`.
    """

    sizes: np.ndarray
    hashes: list[str]
    masks: list[str] | None = None
    mask_values: list[list[int]] | None = None
    edge_values: list[list[int]] | None = None

    def pick(self, where: list[int]) -> Checked:
        """The same for some of the images."""
        some = lambda values: None if values is None else [values[i] for i in where]
        return Checked(
            self.sizes[where], [self.hashes[i] for i in where], some(self.masks), some(self.mask_values),
            some(self.edge_values),
        )  # fmt: skip


class Sliceable(Protocol):
    """An array of which parts can be read. NumPy arrays are such arrays."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the whole array."""

    def __getitem__(self, part: tuple[slice, ...], /) -> np.ndarray:
        """A part, as NumPy returns it. Raises `BadImage`."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A list of images.

    names: unique identifiers, such as relative paths of files.
    read: `index -> uint8 (H, W, C)`, or float16 `(D, H, W, C)` for volumes; raises `BadImage`.
    header: `index -> (H, W)` or `(D, H, W)`, without reading the pixels. None: not available.
    stamp: `index -> value` that changes when the file does (such as size and time), for caching.
    labels: class name of each image, "" if unknown.
    groups: patient of each image, "" if unknown.
    masks: `index -> uint8 (*space)`, the values of the mask on the grid of `read`; raises `BadImage`.
    masked: whether each image has a mask. None: all have one.
    mask_stamp: `index -> value` that changes when the mask file does.
    grids: `index -> Grid`, the image's original grid, if it differs from the grid of `read`.
    skipped: files that were found but are not images.
    examine: `index -> (pixels, notes)`, as `read`, with the assumptions that were made.
    examine_mask: `index -> (mask, notes)`, as `masks`, with the assumptions that were made.
    mask_names: names of the classes 1, 2, ... if the masks hold classes that `config.data.mask_values` names.
    notes: what was assumed about the whole set, for the user.
    splits: split of each image, if the source names them.
    unused: number of further images by split, which `config.data.split` leaves out.
    clips: clip of each image, "" for a single picture. Of nearly equal frames of a clip the first is used.
    scanners: maker and model of the scanner of each image, "" if unknown.
    color_frac: `index -> share` of the pixels that have colour, before an image is made gray. None: unknown.
    checked: results of an earlier check of every image.
    keys: names for the fingerprint, if `names` change when the files are moved.
    modalities: modality of each image, such as "ct" or "mr".
    dtype: type of the arrays that `read` returns.
    whole: `index -> (label map on the pixels of read -> label map on those of the file)`, for 2-D images that are
        shrunk or cut when they are read. None: they are not.
    lazy: `index -> Sliceable`, as `read`, but the voxels are read when they are indexed. None: `read` is used.
    """

    names: list[str]
    read: Callable[[int], np.ndarray]
    header: Callable[[int], tuple[int, ...]] | None = None
    stamp: Callable[[int], Any] | None = None
    labels: list[str] | None = None
    groups: list[str] | None = None
    masks: Callable[[int], np.ndarray] | None = None
    masked: list[bool] | None = None
    mask_stamp: Callable[[int], Any] | None = None
    grids: Callable[[int], grid.Grid] | None = None
    skipped: list[Skipped] = dataclasses.field(default_factory=list)
    examine: Callable[[int], tuple[np.ndarray, list[str]]] | None = None
    examine_mask: Callable[[int], tuple[np.ndarray, list[str]]] | None = None
    mask_names: list[str] | None = None
    notes: list[str] = dataclasses.field(default_factory=list)
    splits: list[str] | None = None
    unused: dict[str, int] = dataclasses.field(default_factory=dict)
    keys: list[str] | None = None
    clips: list[str] | None = None
    scanners: list[str] | None = None
    color_frac: Callable[[int], float] | None = None
    checked: Checked | None = None
    modalities: list[str] | None = None
    dtype: Any = np.uint8
    whole: Callable[[int], Callable[[np.ndarray], np.ndarray]] | None = None
    lazy: Callable[[int], Sliceable] | None = None

    def __len__(self) -> int:
        return len(self.names)

    def size_of(self, index: int) -> tuple[int, ...]:
        """(H, W) or (D, H, W) of an image, from its header if possible."""
        if self.checked is not None:
            return tuple(int(side) for side in self.checked.sizes[index])
        if self.header is not None:
            return self.header(index)
        return self.read(index).shape[:-1]

    def grid_of(self, index: int) -> grid.Grid:
        """The grid on which a segmentation of this image is evaluated and saved."""
        if self.grids is not None:
            return self.grids(index)
        masks = self.masks if self.masks is not None else _no_mask
        return grid.plain(masks, len(self.size_of(index)), index)


def _no_mask(index: int) -> np.ndarray:
    raise BadImage("it has no mask")


def subset(source: Source, indices: np.ndarray) -> Source:
    """The images at `indices`, in that order."""
    where = [int(p) for p in indices]

    def pick(values):
        return None if values is None else [values[p] for p in where]

    def through(function):
        return None if function is None else _Through(function, where)

    return Source(
        names=[source.names[p] for p in where],
        read=_Through(source.read, where),
        header=through(source.header),
        stamp=through(source.stamp),
        labels=pick(source.labels),
        groups=pick(source.groups),
        masks=through(source.masks),
        masked=pick(source.masked),
        mask_stamp=through(source.mask_stamp),
        grids=through(source.grids),
        skipped=source.skipped,
        examine=through(source.examine),
        examine_mask=through(source.examine_mask),
        mask_names=source.mask_names,
        notes=source.notes,
        splits=pick(source.splits),
        unused=source.unused,
        keys=pick(source.keys),
        clips=pick(source.clips),
        scanners=pick(source.scanners),
        color_frac=through(source.color_frac),
        checked=None if source.checked is None else source.checked.pick(where),
        modalities=pick(source.modalities),
        dtype=source.dtype,
        whole=through(source.whole),
        lazy=through(source.lazy),
    )


@dataclasses.dataclass(frozen=True)
class _Through:  # a class, not a closure: worker processes must be able to unpickle it
    function: Callable[[int], Any]
    where: list[int]

    def __call__(self, index: int) -> Any:
        return self.function(self.where[index])
