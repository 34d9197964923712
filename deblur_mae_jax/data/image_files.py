"""Read 2-D images and masks from lists of files. The folder and the CSV sources use it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.data import grid, masks, raster
from deblur_mae_jax.data.decode import BITS16, Decoder
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import unknown


@dataclasses.dataclass(frozen=True)
class Files:
    """Read a list of image files."""

    paths: list[str]
    decoder: Decoder

    def read(self, index: int) -> np.ndarray:
        """Decoded pixels of one file."""
        return self.decoder(Path(self.paths[index]))

    def examine(self, index: int) -> tuple[np.ndarray, list[str]]:
        """Decoded pixels of one file, and the assumptions that were made."""
        return self.decoder.decode(Path(self.paths[index]))

    def header(self, index: int) -> tuple[int, int]:
        """(H, W) of one file."""
        return self.decoder.header(Path(self.paths[index]))

    def whole(self, index: int) -> Callable[[np.ndarray], np.ndarray]:
        """A label map of one file as decoded on its pixels before it was shrunk."""
        with raster.opened(Path(self.paths[index]), self.decoder.max_pixels) as (header, _):
            size = header.upright
        return lambda labels: grid.enlarged(labels, size)

    def stamp(self, index: int) -> list[int] | None:
        """Size and modification time."""
        return stamp_of(self.paths[index])


@dataclasses.dataclass(frozen=True)
class Masks:
    """Read the masks of `images`.

    paths: mask files of each image; () if it has no mask.
    files: how they are read.
    """

    paths: list[tuple[str, ...]]
    images: Files
    files: masks.MaskFile

    def stamp(self, index: int) -> list[Any]:
        """Name, size and modification time of every mask file. The set may be moved to another folder."""
        return [[os.path.basename(path), stamp_of(path)] for path in self.paths[index]]

    def fields(self) -> dict[str, Any]:
        """The mask fields of a `Source`. Empty if no image has a mask."""
        if not any(self.paths):
            return {}
        return {
            "masks": self.read,
            "examine_mask": self.examine,
            "masked": [bool(p) for p in self.paths],
            "mask_stamp": self.stamp,
            "mask_names": list(self.files.values.names) if self.files.values else None,
        }

    def read(self, index: int) -> np.ndarray:
        """The classes of a mask on the pixel grid of `images.read`, uint8 `(H, W)`. Raises `BadImage`."""
        return self.examine(index)[0]

    def examine(self, index: int) -> tuple[np.ndarray, list[str]]:
        """`read`, and the assumptions that were made."""
        if not self.paths[index]:
            raise BadImage("it has no mask")
        decoder = self.images.decoder
        with raster.opened(Path(self.images.paths[index]), decoder.max_pixels) as (header, _):
            pairs = [self.files.read(Path(path), header) for path in self.paths[index]]
        joined = masks.join([mask for mask, _ in pairs])
        return decoder.shrunk_mask(joined), list(dict.fromkeys(note for _, notes in pairs for note in notes))


def stamp_of(path: str) -> list[int] | None:
    """Size and modification time of a file. `None` if it does not exist."""
    try:
        stat = os.stat(path)
    except (OSError, ValueError):
        return None
    return [stat.st_size, stat.st_mtime_ns]


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


def mask_file_of(data) -> masks.MaskFile:
    """The reader of masks that the fields of `config.data` describe."""
    return masks.MaskFile(masks.parse(data.mask_values), data.max_pixels)
