"""ConvNeXt (Liu et al. 2022), channels last, with timm's names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from deblur_mae_jax import sides
from deblur_mae_jax.models import backbone, layers
from deblur_mae_jax.models.backbone import AXES, KINDS
from deblur_mae_jax.models.contract import Rules

__all__ = ["AXES", "KINDS", "RULES", "Model", "flops_per_image"]
# Channels of the first stage, and blocks of each. Every stage has twice the channels of the one before.
VARIANTS = {"T": (96, (3, 3, 9, 3)), "S": (96, (3, 3, 27, 3)), "B": (128, (3, 3, 27, 3)), "L": (192, (3, 3, 27, 3))}
LAYER_SCALE = 1e-6


class Block(nn.Module):
    """A 7 x 7 depthwise convolution and an MLP over the channels, scaled by `gamma`."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, scale=None):
        C = x.shape[-1]
        y = backbone.convolution(C, 7, padding=3, groups=C, dtype=self.dtype, name="conv_dw")(x)
        y = layers.Mlp(4 * C, self.dtype, backbone.normal, name="mlp")(layers.layer_norm("norm", self.dtype)(y))
        gamma = self.param("gamma", nn.initializers.constant(LAYER_SCALE), (C,))
        return backbone.residual(x, layers.scaled(y, gamma), scale)


class Stage(nn.Module):
    """A halving of the sides, except in the first stage, and blocks."""

    features: int
    depth: int
    halves: bool
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x, scales=None):
        if self.halves:
            x = layers.layer_norm("downsample_0", self.dtype)(x)
            x = backbone.convolution(self.features, 2, 2, dtype=self.dtype, name="downsample_1")(x)
        block = nn.remat(Block) if self.remat else Block
        for number in range(self.depth):
            scale = None if scales is None else scales[:, number]
            x = block(self.dtype, name=f"blocks_{number}")(x, scale)
        return x


class Head(nn.Module):
    """LayerNorm of the pooled channels, and the classes."""

    num_classes: int
    head_init: float

    def setup(self):
        self.norm = layers.layer_norm(None, jnp.float32)
        self.fc = backbone.head(self.num_classes, self.head_init)

    def __call__(self, x):
        return self.fc(x)


class ConvNeXt(backbone.Backbone):
    """The network. Build it with `Model`."""

    width: int = 96

    @property
    def widths(self) -> list[int]:
        """Channels of each stage."""
        return [self.width << stage for stage in range(len(self.depths))]

    def setup(self):
        self.stem_0 = backbone.convolution(self.widths[0], 4, 4, dtype=self.dtype)
        self.stem_1 = layers.layer_norm(None, self.dtype)
        self.stages = [
            Stage(width, depth, number > 0, self.dtype, self.remat)
            for number, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True))
        ]
        self.head = Head(self.num_classes, self.head_init)

    def maps(self, images, train=False, scales=None):
        x = self.stem_1(self.stem_0(images.astype(self.dtype)))
        out, done = [], 0
        for stage, depth in zip(self.stages, self.depths, strict=True):
            x = stage(x, None if scales is None else scales[:, done : done + depth])
            done += depth
            out.append(x)
        return out, {}

    def _pooled(self, images, train, scales):
        x = self.maps(images, scales=scales)[0][-1]
        return self.head.norm(x.astype(jnp.float32).mean(axis=(1, 2))), {}

    def _logits(self, features):
        return self.head(features)


def Model(variant: str = "", *, conditioning: str = "none", num_levels: int = 0, **fields: Any) -> ConvNeXt:
    """A ConvNeXt by size: variant "T" (the default), "S", "B" or "L"; other fields of `ConvNeXt` by name."""
    sizes = dict(zip(("width", "depths"), backbone.variant_of(VARIANTS, variant), strict=True))
    return ConvNeXt(**backbone.sized(sizes, fields) | backbone.check(fields, conditioning, "ConvNeXt"))


def flops_per_image(model: ConvNeXt, mask_ratio: float = 0.0, training: bool = True) -> float:
    """Operations of the convolutions and matrix products for one image (2 per multiply-add)."""
    step, before = 4, model.widths[0]
    total = sides.count(model.image_size, step) * 16 * model.in_chans * before
    for stage, (width, depth) in enumerate(zip(model.widths, model.depths, strict=True)):
        if stage:
            step *= 2
            total += sides.count(model.image_size, step) * 4 * before * width
        total += depth * sides.count(model.image_size, step) * width * (49 + 8 * width)
        before = width
    return 2.0 * (total + before * model.num_classes) * (3 if training else 1)


def layers_of(model: ConvNeXt) -> tuple[int, Callable[[str], int]]:
    """Layers for layer-wise learning rates, as in the published code.

    The stem, the first two stages, three blocks each of the third, the fourth, and the head.
    """
    last = 3 + -(-model.depths[2] // 3)

    def layer(name: str) -> int:
        where = backbone.place(name, "stages")
        if where is None:
            return 0 if name.startswith("stem") else last + 1
        stage, block = where
        return (1, 2, 3 + block // 3, last)[stage]

    return last + 1, layer


HEADS = ("head/fc/",)
RULES = Rules(
    undecayed=("gamma",), layers=layers_of, heads=HEADS, encodes=lambda name: not name.startswith("head/"),
    adapt=backbone.adapt(("head/",)), stem="stem_0/kernel", shift=("stem_0/bias", 1.0),
)  # fmt: skip
