"""Read the voxels of volumes and label maps: orientation, resampling, and scaling by modality."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import math
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from deblur_mae_jax import sides
from deblur_mae_jax.data import privacy, volume_file
from deblur_mae_jax.data.grid import Grid, resampled_spacing
from deblur_mae_jax.data.image_files import stamp_of
from deblur_mae_jax.data.masks import MaskValues, classes, join
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.data.volume_file import VolumeFile
from deblur_mae_jax.errors import local_path

# What is said of CT whose values are no Hounsfield units.
WINDOWED = "its values are from 0 to 255, so it is read as CT that is windowed already, not as Hounsfield units"
SCALED = "its values are from 0 to 1, so it is read as CT that is scaled already, not as Hounsfield units"
VOXEL_ON_VOXEL = "the volume or its mask states no orientation, so the mask is laid on it voxel by voxel"
FLAT = "CT from {:.4g} to {:.4g} is nearly uniform after config.data.ct_window; these are hardly Hounsfield units"
LABELS = "the volume holds only {} different whole numbers, as label maps do"
HOUNSFIELD = "MR with values from {:.4g} to {:.4g}, as CT in Hounsfield units has; is it CT (=ct)?"
BACKGROUND = (
    "{:.0f} % of its voxels are {:.4g}: if that is the background, make it 0, because MR is standardised over the "
    "non-zero voxels"
)
NO_AIR = (
    "CT without a value below 0, so it holds no air: if its values have an offset (1024 is usual), shift them to "
    "Hounsfield units, or set config.data.ct_window"
)


class Place(Protocol):
    """Something other than a file that holds a volume."""

    def open(self, max_voxels: int) -> VolumeFile:
        """The volume, of which only the header has been read. Raises `BadImage`."""

    def stamp(self) -> Any:
        """A value that changes when its files do."""


def _stamp(place: str | Place) -> Any:
    if not isinstance(place, str):
        return place.stamp()
    beside = volume_file.data_file(place)
    return [stamp_of(place), stamp_of(beside)] if beside else stamp_of(place)


# Increase it when the decoded values of a file change: it invalidates what is kept in `config.data.decoded`.
READING = 2


@dataclasses.dataclass(frozen=True)
class Volumes:
    """Read a list of volume files. It is sent to worker processes, so it holds plain values only.

    paths: file of each volume, or another place that can be opened, such as a DICOM series.
    masks: mask files of each volume, () without a mask; several are joined.
    modalities: "ct" or "mr" for each volume.
    spacing: voxel size after resampling, mm. (): the file's own.
    ct_window: range of CT values, HU, that is mapped to 0..1.
    max_voxels: larger volumes are refused.
    decoded: folder that keeps decoded volumes. "": none.
    mask_values: the mapping of `config.data.mask_values`.
    """

    paths: Sequence[str | Place]
    masks: Sequence[tuple[str | Place, ...]]
    modalities: list[str]
    spacing: tuple[float, ...]
    ct_window: tuple[float, float]
    max_voxels: int
    decoded: str
    mask_values: MaskValues | None = None

    def header(self, index: int) -> tuple[int, ...]:
        """(D, H, W) after orientation and resampling, from the header alone."""
        return self._resampled_shape(*self._open(self.paths[index]).in_ras()[:2])

    def stamp(self, index: int) -> list[int] | None:
        """Size and modification time."""
        return _stamp(self.paths[index])

    def mask_stamp(self, index: int) -> list[Any]:
        """Name, size and modification time of every mask; of DICOM series a hash of the name."""
        private = not isinstance(self.paths[index], str)
        name = lambda path: "" if not isinstance(path, str) else privacy.pseudonym(path) if private else path
        return [[name(path), _stamp(path)] for path in self.masks[index]]

    def read(self, index: int) -> np.ndarray:
        """float16 `(D, H, W, 1)`, scaled."""
        return self.examine(index)[0]

    def examine(self, index: int) -> tuple[np.ndarray, list[str]]:
        """`read`, and the assumptions that were made."""
        decoded = self._kept(index)
        if decoded is not None and decoded.exists():
            try:
                notes = json.loads(decoded.with_suffix(".json").read_text())
                return np.load(decoded, mmap_mode="r"), notes
            except (OSError, ValueError):
                pass  # incomplete because a process was killed, or of another version: decode it again
        volume, notes = self._decode(index)
        if decoded is not None:
            _keep(decoded, volume, notes)
        return volume, notes

    def mask(self, index: int) -> np.ndarray:
        """uint8 `(D, H, W)`, class numbers, on the grid of `read`."""
        return self.examine_mask(index)[0]

    def examine_mask(self, index: int) -> tuple[np.ndarray, list[str]]:
        """`mask`, and the assumptions that were made."""
        zooms = self._open(self.paths[index]).in_ras()[1]
        truth, notes = self._truth(index)
        mask = self._resampled(truth, zooms, order=0)
        lost = sorted({int(v) for v in np.unique(truth)} - {int(v) for v in np.unique(mask)})
        if lost and mask is not truth:
            values = ", ".join(map(str, lost))
            notes = [*notes, f"config.data.spacing removes label {values} from its training mask; evaluation keeps it"]
        return mask, notes

    def grid(self, index: int) -> Grid:
        """The grid of the file in RAS orientation. Saved label maps are turned back to the file's orientation."""
        volume = self._open(self.paths[index])
        shape, zooms, affine = volume.in_ras()

        def finish(labels: np.ndarray) -> np.ndarray:
            return labels if labels.shape == shape else zoomed(labels, shape, order=0)

        return Grid(
            zooms, "mm", lambda: self._truth(index)[0], finish, volume.save_like, affine,
            resampled_spacing(zooms, shape, self._resampled_shape(shape, zooms)),
        )  # fmt: skip

    def _truth(self, index: int) -> tuple[np.ndarray, list[str]]:
        """The mask in RAS orientation, uint8, not resampled. Raises `BadImage` if its grid is not the volume's."""
        if not self.masks[index]:
            raise BadImage("it has no mask")
        volume = self._open(self.paths[index])
        parts, notes = [], list[str]()
        for path in self.masks[index]:
            mask = self._open_mask(path, private=not isinstance(self.paths[index], str))
            notes += [f"of its mask: {note}" for note in mask.notes]
            if not (mask.oriented and volume.oriented) and mask.shape == volume.shape:
                notes.append(VOXEL_ON_VOXEL)
                mask = dataclasses.replace(mask, affine=volume.affine, zooms=volume.zooms)
            _refuse_other_grid(volume, mask)
            values, more = classes(mask.values(), self.mask_values)
            parts.append(values)
            notes += more
        return join(parts), list(dict.fromkeys(notes))

    def _open_mask(self, path: str | Place, private: bool) -> VolumeFile:
        try:
            return self._open(path)
        except BadImage as error:
            name = f" '{Path(path).name}'" if isinstance(path, str) and not private else ""
            raise BadImage(f"its mask{name}: {error}") from error

    def _kept(self, index: int) -> Path | None:
        if not self.decoded:
            return None
        spec = (self.paths[index], self.stamp(index), self.spacing, self.ct_window,
                self.modalities[index], READING)  # fmt: skip
        name = hashlib.blake2b(repr(spec).encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
        return local_path(self.decoded, "config.data.decoded") / f"{name}.npy"

    def _open(self, path: str | Place) -> VolumeFile:
        if isinstance(path, str):
            return volume_file.open_volume(path, self.max_voxels)
        return path.open(self.max_voxels)

    def _decode(self, index: int) -> tuple[np.ndarray, list[str]]:
        file = self._open(self.paths[index])
        stored = file.values(np.float32)
        if not np.isfinite(stored).all():
            raise BadImage("holds NaN or infinite values")
        notes = [*file.notes, *_looks_like_labels(stored)]
        window = self.ct_window
        if stored.min() == stored.max():
            raise BadImage("all its voxels have the same value")
        if self.modalities[index] == "ct":
            window, more = _window(stored, file.plain_bytes, self.ct_window)
            notes += more
        values = self._resampled(stored, file.in_ras()[1], order=1)
        if self.modalities[index] == "ct":
            low, high = window
            scaled = (np.clip(values, low, high) - low) / (high - low)
            if float(scaled.std()) < 0.005:
                notes.append(FLAT.format(float(stored.min()), float(stored.max())))
        else:
            scaled = _standardised(values)
            if stored.min() < -300:  # MR has no large negative values; Hounsfield units have, in air
                notes.append(HOUNSFIELD.format(float(stored.min()), float(stored.max())))
            notes += _background(stored)
        return scaled.astype(np.float16)[..., None], notes

    def _resampled_shape(self, shape: tuple[int, ...], zooms: Any) -> tuple[int, ...]:
        if not self.spacing:
            return tuple(int(n) for n in shape)
        pairs = zip(shape, zooms, self.spacing, strict=True)
        new = tuple(max(1, round(n * float(zoom) / wanted)) for n, zoom, wanted in pairs)
        if math.prod(new) > max(self.max_voxels, math.prod(shape)):
            written = " x ".join(f"{float(zoom):.4g}" for zoom in zooms)
            raise BadImage(
                f"{sides.written(new)} voxels after config.data.spacing={tuple(self.spacing)}, above "
                f"config.data.max_pixels={self.max_voxels} (the file says that a voxel has {written} mm)"
            )
        return new

    def _resampled(self, values: np.ndarray, zooms: Any, order: int) -> np.ndarray:
        shape = self._resampled_shape(values.shape, zooms)
        if shape == values.shape:
            return values
        return zoomed(values, shape, order)


def _keep(path: Path, volume: np.ndarray, notes: list[str]) -> None:
    """Write a decoded volume. A full disk costs time, not the volume."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(notes))
        with open(draft, "wb") as file:
            np.save(file, volume)
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        with _WARNING:  # several threads decode
            _warn_once(str(path.parent), str(error.strerror or error))


_WARNING = threading.Lock()


@functools.cache
def _warn_once(folder: str, why: str) -> None:
    logging.warning("config.data.decoded: cannot write to '%s': %s. Volumes are decoded anew each time", folder, why)


def _standardised(values: np.ndarray) -> np.ndarray:
    """MR values with mean 0 and standard deviation 1 over the non-zero voxels. Raises `BadImage`."""
    largest = float(np.abs(values).max())
    if not 1e-15 < largest < 1e15:  # squares would leave the range of float32
        values = values.astype(np.float64) / (largest or 1.0)
    inside = values != 0
    spread = float(values[inside].std()) if inside.any() else 0.0
    if spread <= 0:
        raise BadImage("all its voxels have the same value")
    return np.where(inside, (values - values[inside].mean()) / spread, 0.0)


def _background(values: np.ndarray) -> list[str]:
    """A note if much of an MR volume has one value that is not 0."""
    distinct, counts = np.unique(values.ravel()[:: max(1, values.size // 200_000)], return_counts=True)
    most = int(counts.argmax())
    share = counts[most] / counts.sum()
    return [BACKGROUND.format(100 * share, float(distinct[most]))] if distinct[most] != 0 and share > 0.3 else []


def _looks_like_labels(values: np.ndarray) -> list[str]:
    """A note if a volume holds few different whole numbers, one of them often."""
    sample = values.ravel()[:: max(1, values.size // 200_000)]
    distinct, counts = np.unique(sample, return_counts=True)
    whole = len(distinct) <= 64 and distinct.min() >= 0 and np.array_equal(distinct, np.rint(distinct))
    return [LABELS.format(len(distinct))] if whole and counts.max() > 0.3 * counts.sum() else []


def _window(values: np.ndarray, plain_bytes: bool, window: tuple[float, float]):
    """The range of CT values that is mapped to 0..1, and what is assumed.

    Bytes without a scale, and values from 0 to 255, are hardly Hounsfield units, which are negative in air and fat.
    """
    low, high = float(values.min()), float(values.max())
    if plain_bytes:
        return (0.0, 255.0), [WINDOWED]
    # Resampling leaves single values a little outside of the range.
    most, least = np.percentile(values.ravel()[:: max(1, values.size // 200_000)], (99.9, 0.1))
    if least >= 0 and most <= 1 and low >= -0.05 and 0 < high <= 1.05:
        return (0.0, 1.0), [SCALED]
    if least >= 0 and most <= 255 and low >= -5 and 200 <= high <= 260:
        return (0.0, 255.0), [WINDOWED]
    return window, [NO_AIR] if _above_padding(values) >= 0 else []


def _above_padding(values: np.ndarray) -> float:
    """The smallest value, without that of the padding around a round field of view."""
    low = float(values.min())
    padding = values == low
    return float(values[~padding].min()) if 0.01 < padding.mean() < 1 else low


def _refuse_other_grid(volume: VolumeFile, mask: VolumeFile) -> None:
    """Raise `BadImage` if a mask has another shape than its volume, or lies over half a voxel beside it."""
    (shape, zooms, affine), (own_shape, _, own_affine) = volume.in_ras(), mask.in_ras()
    if own_shape != shape:
        raise BadImage(f"its mask has the shape {own_shape}, the volume {shape}")
    corners = np.array(list(itertools.product(*((0, n - 1) for n in shape))))
    ends = np.concatenate([corners, np.ones((8, 1))], axis=1).T
    apart = np.abs(np.linalg.inv(affine) @ own_affine @ ends - ends)[:3]
    if apart.max() > 0.5:
        axis = int(apart.max(axis=1).argmax())
        distance = float(np.abs((own_affine - affine) @ ends)[:3].max())
        raise BadImage(
            f"its mask does not match: by their affines, the corners of mask and volume are {distance:.1f} mm apart, "
            f"{apart.max():.1f} voxels along axis {axis} (at most half a voxel of {zooms[axis]:.3g} mm is allowed)"
        )


def zoomed(values: np.ndarray, shape: tuple[int, ...], order: int) -> np.ndarray:
    from scipy import ndimage

    factors = [new / old for new, old in zip(shape, values.shape, strict=True)]
    return ndimage.zoom(values, factors, order=order, mode="nearest", grid_mode=True)
