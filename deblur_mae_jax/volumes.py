"""From stored volumes to network input, inside the jitted step: random cubes, disrupted (the 3-D `inputs`)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from deblur_mae_jax.degradations.contract import Degradation
from deblur_mae_jax.inputs import Batch

# Volumes are scaled to about 0..1; degradations speak of grey levels 0..255.
GREY = 255.0


@dataclasses.dataclass(frozen=True)
class Cubes:
    """Settings of the input path; `train` and `evaluate` turn examples into batches.

    An example is `image` `(Dc, Hc, Wc, C)` on its canvas and `size` (D, H, W). A batch is `inputs` and `targets`
    float32 `(B, S, S, S, C)`; entries that are not voxels (`modality`) pass through. A volume smaller than
    the cube lies in its middle, zeros around it.
    """

    degradation: Degradation
    image_size: int = 96
    in_chans: int = 1

    @property
    def precomputes(self) -> bool:
        """Nothing is computed beforehand: every draw is new."""
        return False

    def _cube(self, image: jax.Array, size: jax.Array, start: jax.Array) -> jax.Array:
        """The cube that begins at `start` (negative: zeros before the volume)."""
        for axis in range(3):
            place = start[axis] + jnp.arange(self.image_size)
            inside = (place >= 0) & (place < size[axis])
            image = jnp.take(image, jnp.clip(place, 0, image.shape[axis] - 1), axis=axis)
            shape = [-1 if i == axis else 1 for i in range(4)]
            image = jnp.where(inside.reshape(shape), image, 0)
        return image.astype(jnp.float32)

    def _batch(self, examples: Batch, starts: jax.Array, keys: jax.Array) -> Batch:
        def one(image, size, start, key):
            clean = self._cube(image, size, start)
            if self.degradation.identity:
                return clean, clean
            params = self.degradation.draw(key)
            return self.degradation.apply(clean * GREY, params, None) / GREY, clean

        inputs, targets = jax.vmap(one)(examples["image"], examples["size"], starts, keys)
        batch = {k: v for k, v in examples.items() if k not in ("image", "size")}
        return batch | {"inputs": inputs, "targets": targets}

    def train(self, examples: Batch, keys: dict[str, jax.Array], choose_level=None) -> Batch:
        """Cubes at random places, each example with its own draws."""

        def start(key, size):
            room = size - self.image_size
            drawn = jnp.floor(jax.random.uniform(key, (3,)) * (jnp.maximum(room, 0) + 1)).astype(
                int
            )
            return jnp.where(room < 0, -((-room) // 2), jnp.minimum(drawn, room))

        starts = jax.vmap(start)(keys["crop"], examples["size"])
        return self._batch(examples, starts, keys["degrade"])

    def evaluate(self, examples: Batch, keys: dict[str, jax.Array]) -> Batch:
        """The central cube."""
        room = examples["size"] - self.image_size
        starts = jnp.where(room < 0, -((-room) // 2), room // 2)
        return self._batch(examples, starts, keys["degrade"])
