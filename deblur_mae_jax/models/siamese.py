"""What the networks for contrastive learning share: an encoder with a projector, its momentum copy, and a predictor.

Parameter names are those of MoCo v3's code (Chen et al. 2021): `base_encoder` with the projector in place of its head,
`momentum_encoder` with the same names, and `predictor`. SimCLR (Chen et al. 2020) has the first of these only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.models import layers

KINDS = ("contrast",)
AXES = 2
BASE, MOMENTUM, PREDICTOR = "base_encoder/", "momentum_encoder/", "predictor"
# What follows the last linear layer: BatchNorm without affine parameters, with a scale only, or nothing.
LASTS = ("plain", "scale", "none")
EPSILON = 1e-5
# PyTorch's initialisation of a linear layer.
uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Siamese(nn.Module):
    """The fields and calls that these networks share. A network makes its encoders in `_encoders`.

    projector: widths of the linear layers of the projector.
    predictor: widths of those of the predictor. (): none.
    momentum: whether there is a momentum copy of the encoder.
    projector_last: what follows the last linear layer of the projector, one of `LASTS`.
    predictor_last: the same for the predictor.
    """

    projector: Sequence[int] = (4096, 4096, 256)
    predictor: Sequence[int] = (4096, 256)
    momentum: bool = True
    projector_last: str = "plain"
    predictor_last: str = "plain"

    def setup(self):
        self._encoders()
        add_mlp(self, PREDICTOR, self.predictor, self.predictor_last)

    def _encoders(self) -> None:
        raise NotImplementedError

    def __call__(self, images, level=None, train=False):
        """`(B, H, W, C)` -> embeddings `(B, E)` float32, of the predictor if there is one.

        level: blur level of each image `(B,)`, required if the model is conditioned.
        train: normalise by the statistics of this batch.
        out: `projected` `(B, E)`, the embeddings before the predictor; `assign`, new running statistics in training.
        """
        projected, new = self.base_encoder.project(images, level, train)
        out, more = run_mlp(self, PREDICTOR, projected, train)
        if self.momentum and self.is_initializing():
            self.momentum_encoder.project(images, level, train)
        return out, {"projected": projected, "assign": {"base_encoder": new, **more} if train else {}}

    def target(self, images, level=None):
        """Embeddings `(B, E)` of the momentum encoder in training, and its new running statistics as `assign`."""
        projected, new = self.momentum_encoder.project(images, level, True)
        return projected, {"assign": {"momentum_encoder": new}}

    def features(self, images, level=None):
        """`(B, H, W, C)` -> features `(B, D)` float32 of the encoder, the input of the projector."""
        return self.base_encoder.features(images, level)


def add_mlp(owner: nn.Module, name: str, widths: Sequence[int], last: str) -> None:
    """Give `owner` the layers of an MLP: `name_0` linear, `name_1` BatchNorm, `name_3` linear, and so on.

    PyTorch's `Sequential` counts the ReLU after each BatchNorm.

    widths: of the linear layers, which have no bias.
    last: what follows the last of them, one of `LASTS`.
    """
    for number, width in enumerate(widths):
        setattr(owner, f"{name}_{3 * number}", layers.dense(width, jnp.float32, init=uniform, use_bias=False))
        if number < len(widths) - 1 or last != "none":
            affine = number < len(widths) - 1 or last == "scale"
            norm = layers.BatchNorm(EPSILON, affine=affine, shifts=number < len(widths) - 1)
            setattr(owner, f"{name}_{3 * number + 1}", norm)


def run_mlp(owner: Any, name: str, x: jax.Array, train: bool) -> tuple[jax.Array, dict[str, Any]]:
    """Apply the layers of `add_mlp` to `(B, D)`. Returns the result and the new running statistics."""
    new, number = {}, 0
    while hasattr(owner, f"{name}_{3 * number}"):
        x = nn.relu(x) if number else x
        x = getattr(owner, f"{name}_{3 * number}")(x)
        norm = f"{name}_{3 * number + 1}"
        if hasattr(owner, norm):
            x, new[norm] = getattr(owner, norm)(x, train)
        number += 1
    return x, new if train else {}


def check(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a network, with tuples. Raises `UserError` for widths that are impossible."""
    for name in ("projector", "predictor"):
        widths = tuple(fields.get(name, ()))
        if not all(isinstance(width, int) and width > 0 for width in widths) or (name == "projector" and not widths):
            raise UserError(f"config.model.{name}={widths} must be widths of layers above 0")
        fields[name] = widths
        if fields.get(f"{name}_last", "plain") not in LASTS:
            raise unknown(f"config.model.{name}_last", fields[f"{name}_last"], LASTS)
    if fields["predictor"] and fields["predictor"][-1] != fields["projector"][-1]:
        raise UserError(
            f"config.model.predictor={fields['predictor']} must end with {fields['projector'][-1]}, the width of what "
            "it predicts"
        )
    return fields


def moved(momentum: Any, base: Any, keep: Any) -> Any:
    """The momentum encoder after one update: `keep * momentum + (1 - keep) * base`.

    Its running statistics are its own and do not move.
    """

    def move(path: Any, old: jax.Array, new: jax.Array) -> jax.Array:
        return old if path[-1].key in layers.STATISTICS else keep * old + (1.0 - keep) * jax.lax.stop_gradient(new)

    return jax.tree_util.tree_map_with_path(move, momentum, base)


def mlp_flops(width: int, widths: Sequence[int]) -> float:
    """Operations of an MLP for one image (2 per multiply-add)."""
    return float(sum(2 * a * b for a, b in zip((width, *widths), widths, strict=False)))
