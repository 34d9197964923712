"""What the convolutional networks and the 2-D Swin share: sizes, convolutions with explicit padding, heads, drop path.

They classify images. Their parameter names are timm's, with "_" before numbers where timm has "." (`stages_0`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.models import vit
from deblur_mae_jax.models.contract import Adapted, Flat
from deblur_mae_jax.models.convolution import Convolution

KINDS = ("classify",)
AXES = 2
# timm's initialisation of ConvNeXt and Swin. It cuts at +-2, a hundred standard deviations; Flax's would cut at two.
normal = nn.initializers.normal(0.02)


class Backbone(nn.Module):
    """The fields and the calls that these networks share. A network has `maps`, `_pooled` and `_logits`.

    branches: number of branches of a block, each of which stochastic depth draws for itself.
    """

    branches: ClassVar[int] = 1
    image_size: sides.Size = 224
    in_chans: int = 1
    num_classes: int = 0
    depths: Sequence[int] = (3, 4, 6, 3)
    drop_path: float = 0.0
    head_init: float = 0.01
    dtype: Any = jnp.float32
    remat: bool = False

    def features(self, images, level=None, mix=None, drop_path_keys=None):
        """`(B, H, W, C)` -> features `(B, D)` float32, the input of the head. Levels are not used."""
        return self._pooled(images, False, self.drop_path_scales(drop_path_keys))[0]

    def __call__(self, images, level=None, *, mix=None, drop_path_keys=None, train=False, frozen=False, encoded=None):
        """`(B, H, W, C)` -> logits `(B, num_classes)` float32.

        encoded: `features` of the images `(B, D)`, if they are known.
        out: `assign`, the new running statistics in training. A frozen network uses those that it has.
        """
        if encoded is not None:
            return self._logits(encoded), {"assign": {}}
        x, new = self._pooled(images, train and not frozen, self.drop_path_scales(drop_path_keys))
        if frozen:
            x = jax.lax.stop_gradient(x)
        return self._logits(x), {"assign": new}

    def drop_path_scales(self, keys: jax.Array | None) -> jax.Array | None:
        """The factor of the branch of every block `(B, blocks)`, for stochastic depth.

        With two branches, `(B, blocks, 2)`.
        """
        if keys is None or self.drop_path == 0:
            return None
        scales = vit.drop_path_scales(keys, self.drop_path, sum(self.depths)).astype(self.dtype)
        return scales if self.branches == 2 else scales[..., 0]

    def pyramid(self, images, level=None, train=False, drop_path_keys=None):
        """`(B, H, W, C)` -> the map after each stage `(B, h, w, D)`, and the new running statistics in training."""
        return self.maps(images, train, self.drop_path_scales(drop_path_keys))

    def maps(self, images: jax.Array, train: bool = False, scales: Any = None) -> tuple[list[jax.Array], dict]:
        """The map after each stage, and the new running statistics in training.

        scales: the factor of the branch of every block `(B, blocks)`, for stochastic depth.
        """
        raise NotImplementedError

    def _pooled(self, images: jax.Array, train: bool, scales: jax.Array | None) -> tuple[jax.Array, dict[str, Any]]:
        raise NotImplementedError

    def _logits(self, features: jax.Array) -> jax.Array:
        raise NotImplementedError


def convolution(
    features: int, side: int, stride: int = 1, *, padding: int = 0, groups: int = 1, use_bias: bool = True,
    init: Any = normal, dtype: Any = jnp.float32, name: str | None = None,
) -> Convolution:  # fmt: skip
    """A convolution that pads both ends alike, as PyTorch does. With stride 2, "SAME" would pad one end only."""
    return Convolution(
        features, side, stride, padding, groups, use_bias=use_bias, kernel_init=init, dtype=dtype, name=name
    )


def head(num_classes: int, deviation: float, name: str | None = None) -> nn.Dense:
    """The linear layer of the classes, in float32.

    deviation: standard deviation of its initial weights.
    """
    return nn.Dense(num_classes, kernel_init=nn.initializers.normal(deviation), name=name)


def residual(x: jax.Array, branch: jax.Array, scale: jax.Array | None) -> jax.Array:
    """`x + branch`, with the branch of each example scaled by `scale` `(B,)`."""
    return x + (branch if scale is None else branch * scale[:, None, None, None])


def variant_of(variants: dict[str, Any], variant: str) -> Any:
    """The sizes of a variant; "" is the first. Raises `UserError`."""
    name = variant or next(iter(variants))
    if name not in variants:
        raise unknown("config.model.variant", name, variants)
    return variants[name]


def sized(sizes: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    """The sizes of a variant, with those that are set in `fields`, from which they are removed."""
    own = {name: fields.pop(name) for name in list(fields) if name in ("width", "depths")}
    out = sizes | {name: value for name, value in own.items() if value}
    return out | {"depths": tuple(out["depths"])}


def check(fields: dict[str, Any], conditioning: str, network: str) -> dict[str, Any]:
    """The fields of a network, with its data type. Raises `UserError` for what these networks do not have."""
    if conditioning != "none":
        raise UserError(
            f"config.model.conditioning={conditioning}: a {network} has no tokens to which the code of a blur level "
            "could be added. Choices: none"
        )
    if not 0 <= fields.get("drop_path", 0.0) < 1:
        raise UserError(f"config.model.drop_path={fields['drop_path']} must be in [0, 1)")
    return fields | {"dtype": jnp.dtype(fields.get("dtype", "float32"))}


def place(name: str, stages: str) -> tuple[int, int] | None:
    """(stage, block) of a parameter; what precedes the blocks of a stage counts as its first block. None: elsewhere.

    stages: name of the stages, as in `stages_2/blocks_5/mlp/fc1/kernel`.
    """
    found = re.match(rf"{stages}_(\d+)/(?:blocks_(\d+)/)?", name + "/")
    return (int(found[1]), int(found[2] or 0)) if found else None


def adapt(heads: tuple[str, ...]) -> Callable[[Flat, Flat, Any, Any], Adapted]:
    """The rule of networks whose parameters fit at any image size: all are needed but those of the head."""

    def fit(weights: Flat, needed: Flat, before: Any, model: Any) -> Adapted:
        return Adapted(weights, lambda name: name.startswith(heads))

    return fit
