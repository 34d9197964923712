"""Read a packed set of volumes (`scripts/pack_data.py`)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from deblur_mae_jax.data import layout, records
from deblur_mae_jax.data.grid import Grid, resampled_spacing, save_volume
from deblur_mae_jax.data.packed import Records, open_index
from deblur_mae_jax.data.source import BadImage, Source
from deblur_mae_jax.data.volume_reader import zoomed

AXES = 3  # of its images
READS = ("group_pattern",)  # fields of config.data that say what the images are


@dataclasses.dataclass(frozen=True)
class VolumeRecords(Records):
    """Read the volumes of a packed set.

    sizes: (D, H, W) of each volume `(N, 3)`.
    channels: channels of a volume.
    block: side of a block in voxels.
    """

    sizes: np.ndarray
    channels: int
    block: int

    def examine(self, index: int) -> tuple[np.ndarray, list[str]]:
        """float16 `(D, H, W, 1)`, and no assumptions: they were made when the set was packed."""
        return self.lazy(index)[:, :, :], []

    def lazy(self, index: int) -> records.Blocks:
        """The volume, of which blocks are read when they are indexed."""
        shape = (*(int(side) for side in self.sizes[index]), self.channels)
        return records.Blocks(
            shape, np.float16, self.block, lambda numbers: self.fetch(index, [1 + n for n in numbers])
        )

    def grid(self, index: int) -> Grid:
        """The grid of the original file in RAS orientation. Label maps are saved in that orientation, at its place."""
        parts = self.parts(index)
        original = tuple(parts.facts.get("original", parts.facts["shape"][:-1]))
        spacing = tuple(parts.facts["spacing"])

        def truth() -> np.ndarray:
            if parts.truth:
                return records.decompress(parts.truth, np.uint8, original)
            if not parts.mask:
                raise BadImage("it has no mask")
            return records.decompress(parts.mask, np.uint8, original)

        def finish(labels: np.ndarray) -> np.ndarray:
            return labels if labels.shape == original else zoomed(labels, original, order=0)

        def save(labels: np.ndarray, path: Path) -> Path:
            return save_volume(labels, path, np.array(parts.facts["affine"]))

        read = resampled_spacing(spacing, original, tuple(parts.facts["shape"][:-1]))
        return Grid(spacing, parts.facts["unit"], truth, finish, save, parts.facts["affine"], read)


def source(data, channels: int) -> Source:
    """The volumes of the packed set in the folder `data.root`, of the splits that `data.split` names."""
    index = open_index(data, channels, AXES)
    place = lambda name: np.array([index.columns[name][i] for i in index.rows], np.int32)
    checked = index.checked()
    reader = VolumeRecords(
        index.shards,
        place("shard"),
        place("record"),
        None,
        checked.sizes,
        index.facts["channels"],
        index.facts["block"],
    )
    masked = index.list_of("mask_hash")
    names, notes = [index.columns["name"][i] for i in index.rows], list(index.notes)
    return Source(
        names,
        reader.read,
        labels=index.list_of("label"),
        groups=layout.groups_of_names(names, index.list_of("group"), data.group_pattern, notes),
        masks=reader.mask if masked else None,
        masked=[bool(value) for value in masked] if masked else None,
        grids=reader.grid,
        mask_names=index.facts["mask_names"],
        notes=notes,
        splits=index.list_of("split"),
        unused=index.unused,
        scanners=index.list_of("scanner"),
        keys=[index.columns["key"][i] for i in index.rows],
        checked=checked,
        modalities=index.list_of("modality"),
        dtype=np.float16,
        lazy=reader.lazy,
    )
