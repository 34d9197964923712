"""The interface of an input pipeline, which turns stored images into inputs of a network.

`ImageInputs` implements it for 2-D images, `VolumeInputs` for volumes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax

from deblur_mae_jax.data.loader import Cubes
from deblur_mae_jax.degradations.contract import Degradation
from deblur_mae_jax.sides import Size

# Arrays by name; the first axis is the batch.
Batch = dict[str, jax.Array]
Keys = dict[str, jax.Array]
# (examples, boxes, flips) -> the blur level of each example `(B,)`
ChooseLevel = Callable[[Batch, Any, jax.Array], jax.Array]


class InputPipeline(Protocol):
    """Turns the examples of a store into batches. Every function is traced inside a jitted step.

    An example has `image` on its canvas `(*canvas, C)`, `size` (its true sides), and entries such as `label`, which
    are passed on unchanged. A batch has `inputs` and `targets`, float32 `(B, *space, C)`, with sides of `image_size`.
    """

    @property
    def degradation(self) -> Degradation:
        """The degradation of the inputs."""

    @property
    def image_size(self) -> Size:
        """Sides of an input, pixels or voxels."""

    @property
    def in_chans(self) -> int:
        """Channels of an input."""

    @property
    def precomputes(self) -> bool:
        """Whether `precompute` computes the degraded image once, to be stored with the original."""

    def cubes(self, seed: int) -> Cubes | None:
        """The places of the cubes that `train` draws, for the host; `None` if they depend on the voxels."""

    def train(self, examples: Batch, keys: Keys, choose_level: ChooseLevel | None = None) -> Batch:
        """Random views, each example with its own draws."""

    def evaluate(self, examples: Batch, keys: Keys, level: jax.Array | None = None) -> Batch:
        """The central view.

        level: blur level `(B,)`, which replaces the drawn or stored one.
        """
