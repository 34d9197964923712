"""Turn stored volumes into network inputs, inside the jitted step: crop random cubes and degrade them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax import sides
from deblur_mae_jax.degradations.contract import Degradation
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline import augment
from deblur_mae_jax.input_pipeline.contract import Batch, ChooseLevel
from deblur_mae_jax.input_pipeline.keys import stream_keys
from deblur_mae_jax.sides import Size

# Volumes are scaled to about 0..1, but degradations expect gray levels 0..255.
GREY = 255.0


@dataclasses.dataclass(frozen=True)
class VolumeInputs:
    """The input pipeline of volumes. `train` and `evaluate` turn examples into batches.

    An example has `image` `(Dc, Hc, Wc, C)` on its canvas, `size` (D, H, W) and, in segmentation, `mask`
    `(Dc, Hc, Wc)`. A batch has `inputs` and `targets` float32 `(B, *sides, C)`, and `mask` int32 `(B, *sides)`.
    Other entries, such as `modality`, are passed on unchanged. A volume smaller than the cube is centred in it and
    padded with zeros.

    The following fields apply to training with masks:
    foreground: share of the cubes centred on a labelled voxel. The others are centred on an unlabelled voxel with a
        value above 0, as in MONAI.
    flip: probability of a flip along each axis.
    rotate: probability of a rotation by 90, 180 or 270 degrees in the plane of the first two axes.
    intensity: `(key, cube) -> cube`.
    """

    degradation: Degradation
    image_size: Size = 96
    in_chans: int = 1
    foreground: float = 0.0
    flip: float = 0.0
    rotate: float = 0.0
    intensity: Callable[[jax.Array, jax.Array], jax.Array] | None = None

    @classmethod
    def from_config(cls, config: ConfigDict, degradation: Degradation, kind: str) -> VolumeInputs:
        """Build the pipeline from `config.data` and, for segmentation, `config.augment`.

        kind: kind of the task, such as "segment".
        """
        sizes: dict[str, Any] = {"image_size": config.image_size, "in_chans": config.model.in_chans}
        if kind != "segment":
            return cls(degradation, **sizes)
        first, second, _ = sides.of(config.image_size, 3)
        if config.augment.rotate_probability and first != second:
            raise UserError(
                f"config.augment.rotate_probability={config.augment.rotate_probability} turns crops by 90 degrees in "
                "the plane of the first two axes, which need equal sides; with config.image_size="
                f"{config.image_size} set it to 0"
            )
        return cls(
            degradation,
            **sizes,
            foreground=config.data.foreground,
            flip=config.augment.flip_probability,
            rotate=config.augment.rotate_probability,
            intensity=augment.intensity_of(config.augment),
        )

    @property
    def precomputes(self) -> bool:
        """Nothing is computed beforehand: every draw is new."""
        return False

    def cubes(self, seed: int) -> HostCubes | None:
        """The cubes of `train`, drawn on the host. `None` if their places depend on the voxels."""
        return None if self.foreground else HostCubes(seed, self.sides)

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of a cube, voxels."""
        return sides.of(self.image_size, 3)

    def _cube(self, image: jax.Array, size: jax.Array, start: jax.Array, origin: jax.Array) -> jax.Array:
        """The cube that begins at `start` (negative: zeros before the volume).

        origin: the voxel of the volume at the first corner of `image`.
        """
        for axis in range(3):
            coordinate = start[axis] + jnp.arange(self.sides[axis])
            inside = (coordinate >= 0) & (coordinate < size[axis])
            image = jnp.take(image, jnp.clip(coordinate - origin[axis], 0, image.shape[axis] - 1), axis=axis)
            shape = [-1 if i == axis else 1 for i in range(4)]
            image = jnp.where(inside.reshape(shape), image, 0)
        return image

    def _batch(self, examples: Batch, starts: jax.Array, keys: jax.Array) -> Batch:
        # A cube that the host has cut begins at its first voxel inside the volume, a whole volume at its first voxel.
        origins = jnp.maximum(starts, 0) if "start" in examples else jnp.zeros_like(starts)

        def one(image, size, start, origin, key):
            clean = self._cube(image, size, start, origin).astype(jnp.float32)
            if self.degradation.identity:
                return clean, clean
            params = self.degradation.draw(key)
            return self.degradation.apply(clean * GREY, params, None) / GREY, clean

        inputs, targets = jax.vmap(one)(examples["image"], examples["size"], starts, origins, keys)
        batch = {k: v for k, v in examples.items() if k not in ("image", "size", "start")}
        if "mask" in batch:
            cut = lambda mask, size, start, origin: self._cube(mask[..., None], size, start, origin)[..., 0]
            batch["mask"] = jax.vmap(cut)(batch["mask"], examples["size"], starts, origins).astype(jnp.int32)
        return batch | {"inputs": inputs, "targets": targets}

    def train(self, examples: Batch, keys: dict[str, jax.Array], choose_level: ChooseLevel | None = None) -> Batch:
        """Cubes at random places, each example with its own draws.

        A `start` among the examples is the first voxel `(B, 3)` of a cube that the host has cut (`Loader.cube`).
        """
        if "start" in examples:
            starts = examples["start"]
        else:
            draws = jax.vmap(lambda key: jax.random.uniform(key, (3,)))(keys["crop"])
            starts = first_voxel(draws, examples["size"], self.sides, jnp)
        if "mask" not in examples:
            return self._batch(examples, starts, keys["degrade"])
        if self.foreground:
            starts = jax.vmap(self._balanced)(
                keys["crop"], examples["image"], examples["mask"], examples["size"], starts
            )
        batch = self._batch(examples, starts, keys["degrade"])
        inputs, mask = jax.vmap(self._turned)(keys["augment"], batch["inputs"], batch["mask"])
        return batch | {"inputs": inputs, "mask": mask}

    def _balanced(self, key, image, mask, size, start) -> jax.Array:
        """First voxel of a cube centred on a labelled or a background voxel. `start` if there is neither."""
        k_kind, k_labelled, k_other = jax.random.split(jax.random.fold_in(key, 1), 3)
        inside = mask > 0
        labelled, some = draw_voxel(k_labelled, inside)
        other, any_other = draw_voxel(k_other, (image[..., 0] > 0) & ~inside)
        in_label = jax.random.bernoulli(k_kind, self.foreground)
        middle = jnp.where(some & (in_label | ~any_other), labelled, other)
        wanted = jnp.asarray(self.sides)
        room = size - wanted
        begin = jnp.clip(middle - wanted // 2, 0, jnp.maximum(room, 0))
        begin = jnp.where(room < 0, -((-room) // 2), begin)
        return jnp.where(some | any_other, begin, start)

    def _turned(self, key, cube, mask) -> tuple[jax.Array, jax.Array]:
        """Flip, rotate and rescale a cube at random. The mask is flipped and rotated with it."""
        k_flip, k_rotate, k_turns, k_intensity = jax.random.split(key, 4)
        flips = jax.random.bernoulli(k_flip, self.flip, (3,))
        turns = jax.random.randint(k_turns, (), 1, 4) * jax.random.bernoulli(k_rotate, self.rotate)

        def turn(x):
            for axis in range(3):
                x = jnp.where(flips[axis], jnp.flip(x, axis), x)
            return quarter_turns(x, turns) if self.rotate else x

        if self.flip or self.rotate:
            cube, mask = turn(cube), turn(mask)
        if self.intensity is not None:
            cube = self.intensity(k_intensity, cube)
        return cube, mask

    def evaluate(self, examples: Batch, keys: dict[str, jax.Array], level: jax.Array | None = None) -> Batch:
        """The central cube.

        level: not used, as volumes have no blur levels.
        """
        room = examples["size"] - jnp.asarray(self.sides)
        starts = jnp.where(room < 0, -((-room) // 2), room // 2)
        return self._batch(examples, starts, keys["degrade"])


def first_voxel(draws: Any, size: Any, sides: tuple[int, ...], numpy: Any) -> Any:
    """First voxel of a cube at a random place `(..., 3)`; a volume smaller than the cube is centred in it.

    draws: uniform draws from 0 to 1, float32 `(..., 3)`.
    size: (D, H, W) of the volumes, int32 `(..., 3)`.
    sides: of the cube, voxels.
    numpy: `numpy` or `jax.numpy`; the results are equal.
    """
    room = size - numpy.asarray(sides, numpy.int32)
    number = (numpy.maximum(room, 0) + 1).astype(numpy.float32)
    drawn = numpy.floor(draws * number).astype(numpy.int32)
    return numpy.where(room < 0, -((-room) // 2), numpy.minimum(drawn, room))


@dataclasses.dataclass(frozen=True)
class HostCubes:
    """The places of the cubes that `VolumeInputs.train` draws, on the host: reading then needs the cubes alone.

    seed: seed of the run.
    sides: of a cube, voxels.
    """

    seed: int
    sides: tuple[int, ...]

    def start(self, step: int, row: int, size: tuple[int, ...]) -> np.ndarray:
        """First voxel, int32 `(3,)`, of the cube of example `row` in the batch of `step`."""
        return first_voxel(_host_draws(self.seed, step, row), np.array(size, np.int32), self.sides, np)


@functools.cache
def _drawing(seed: int) -> Any:
    """`(step, row) -> uniform draws (3,)` of the step's own stream, compiled for the CPU.

    On an accelerator, a draw would wait for the training steps that are queued there.
    """

    def draws(step, row):
        return jax.random.uniform(stream_keys(seed, step, row[None])["crop"][0], (3,))

    return jax.jit(draws)


def _host_draws(seed: int, step: int, row: int) -> np.ndarray:
    with jax.default_device(_cpu()):
        return np.asarray(_drawing(seed)(np.int32(step), np.int32(row)))


@functools.cache
def _cpu() -> jax.Device | None:
    """The CPU as a device; `None` where JAX was started without it."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def quarter_turns(x: jax.Array, turns: jax.Array) -> jax.Array:
    """A cube `(S, S, D, ...)` turned by `turns` times 90 degrees in the plane of its first two axes."""
    return jax.lax.switch(turns % 4, [lambda x, k=k: jnp.rot90(x, k) for k in range(4)], x)


def draw_voxel(key: jax.Array, inside: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Draw a voxel uniformly from those where `inside` `(D, H, W)` is true.

    Returns its index `(3,)`, and whether there is such a voxel. A plane is drawn in proportion to its number of
    voxels, then a row of the plane, then a voxel of the row. This needs one pass and no list of voxels.
    """
    keys = jax.random.split(key, 3)
    coordinates = []
    for axis in range(3):
        counts = inside.astype(jnp.int32).reshape(inside.shape[0], -1).sum(axis=1)
        total = counts.sum()
        nth = jnp.floor(jax.random.uniform(keys[axis]) * total).astype(jnp.int32)
        number = jnp.searchsorted(jnp.cumsum(counts), jnp.minimum(nth, total - 1), side="right")
        number = jnp.minimum(number, inside.shape[0] - 1)
        coordinates.append(number)
        if axis == 0:
            any_voxel = total > 0
        inside = inside[number]
    return jnp.stack(coordinates), any_voxel
