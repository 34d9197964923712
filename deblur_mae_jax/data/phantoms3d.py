"""Simulated CT and MR volumes of one anatomy, for demos and tests, not for scientific results.

Each phantom is a body of soft tissue with a few organs, a bone and an air pocket; they differ between phantoms. The
tissues are rendered as CT (fixed densities, fine noise) or as MR (other contrasts, a smooth bias field, coarser noise),
so the two modalities share the anatomy but not the gray levels. Two organs are labelled.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from deblur_mae_jax.data.phantoms import UNSEEN, UNSEEN_SEED
from deblur_mae_jax.data.source import Source
from deblur_mae_jax.errors import UserError

AXES = 3  # of its images
READS: tuple[str, ...] = ()

MODALITIES = ("ct", "mr")
# Tissue: CT density on the 0..1 window, MR signal before standardisation.
_TISSUES = {"air": (0.02, 0.02), "soft": (0.52, 0.55), "organ1": (0.60, 0.85), "organ2": (0.56, 0.30),
            "vessel": (0.68, 0.10), "bone": (0.92, 0.15)}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Phantoms3D:
    """`count` cubes with sides of `side` voxels, alternately CT and MR.

    Volume i and its mask depend on (seed, i) alone.
    """

    count: int
    seed: int
    side: int

    def modality(self, index: int) -> str:
        """ "ct" or "mr"."""
        return MODALITIES[index % 2]

    def _tissues(self, index: int) -> tuple[np.ndarray, np.random.Generator]:
        rng = np.random.Generator(np.random.Philox(key=[self.seed, index]))
        side = self.side
        axes = np.meshgrid(*[np.linspace(-1, 1, side)] * 3, indexing="ij")
        warp = [0.08 * _smooth(rng, side) for _ in range(3)]
        coordinates = [a + w for a, w in zip(axes, warp, strict=True)]

        def inside(centre, radii):
            return sum(((p - c) / r) ** 2 for p, c, r in zip(coordinates, centre, radii, strict=True)) < 1

        names = np.zeros((side,) * 3, np.int64)
        number = {name: i for i, name in enumerate(_TISSUES)}
        names[inside((0, 0, 0), rng.uniform(0.78, 0.92, 3))] = number["soft"]
        draw = lambda low, high: rng.uniform(low, high, 3)
        organs = (
            ("organ1", np.array([-0.3, 0.1, 0.0]) + draw(-0.08, 0.08), draw(0.22, 0.34)),
            ("organ2", np.array([0.32, -0.05, 0.1]) + draw(-0.08, 0.08), draw(0.16, 0.26)),
            (
                "vessel",
                np.array([0.05, 0.35, 0.0]) + draw(-0.05, 0.05),
                np.array([0.07, 0.07, 0.8]),
            ),
            ("bone", np.array([0.0, -0.55, 0.0]) + draw(-0.04, 0.04), np.array([0.15, 0.13, 0.85])),
            ("air", np.array([0.25, 0.4, -0.3]) + draw(-0.1, 0.1), draw(0.08, 0.14)),
        )
        for name, centre, radii in organs:
            names[inside(centre, radii) & (names > 0)] = number[name]
        return names, rng

    def read(self, index: int) -> np.ndarray:
        """float16 `(S, S, S, 1)`, scaled as real volumes are."""
        names, rng = self._tissues(index)
        column = MODALITIES.index(self.modality(index))
        signal = np.array([values[column] for values in _TISSUES.values()])[names]
        signal = signal * (1 + 0.05 * _smooth(rng, self.side) * (names > 0))
        if self.modality(index) == "ct":
            volume = signal + 0.03 * rng.standard_normal(names.shape)
            volume = np.clip(ndimage.gaussian_filter(volume, 0.6), 0, 1)
        else:
            volume = signal * np.exp(0.25 * _smooth(rng, self.side))
            noise = 0.05 * (rng.standard_normal(names.shape) + 1j * rng.standard_normal(names.shape))
            volume = np.abs(ndimage.gaussian_filter(volume, 0.8) + noise)  # Rician, as magnitudes are
            volume[names == 0] = 0
            body = volume[names > 0]
            volume[names > 0] = (body - body.mean()) / body.std()
        return volume.astype(np.float16)[..., None]

    def mask(self, index: int) -> np.ndarray:
        """uint8 `(S, S, S)`: 1 and 2 are the two organs."""
        names, _ = self._tissues(index)
        number = {name: i for i, name in enumerate(_TISSUES)}
        out = np.zeros(names.shape, np.uint8)
        out[names == number["organ1"]], out[names == number["organ2"]] = 1, 2
        return out


def _smooth(rng: np.random.Generator, side: int) -> np.ndarray:
    """A slowly varying field of unit variance, from a coarse grid."""
    field = ndimage.zoom(rng.standard_normal((5, 5, 5)), side / 5, order=3, mode="nearest", grid_mode=True)
    return field / (field.std() + 1e-12)


def source(data, channels: int) -> Source:
    """`data.num_images` phantoms of `data.side` voxels.

    `data.split="unseen"` gives others, a fifth as many. Any other split gives all phantoms.
    """
    if channels != 1:
        raise UserError(f"config.model.in_chans={channels}: volumes have one channel")
    unseen = data.split == UNSEEN
    count = range(max(1, data.num_images // 5) if unseen else data.num_images)
    phantoms = Phantoms3D(len(count), data.phantom_seed + (UNSEEN_SEED if unseen else 0), data.side)
    return Source(
        [f"{UNSEEN if unseen else 'phantom'}_{i:05d}" for i in count],
        phantoms.read,
        lambda index: (data.side,) * 3,
        groups=[f"phantom_{i:05d}" for i in count],
        masks=phantoms.mask,
        modalities=[phantoms.modality(i) for i in count],
        dtype=np.float16,
    )
