"""ResNet-50 and -101 (He et al. 2016, version 1.5: the stride is in the 3 x 3 convolution), with timm's names."""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from deblur_mae_jax import sides
from deblur_mae_jax.models import backbone, layers, pooling
from deblur_mae_jax.models.backbone import AXES, KINDS
from deblur_mae_jax.models.contract import Rules

__all__ = ["AXES", "KINDS", "RULES", "Model", "flops_per_image"]
# Channels of the first stage, and blocks of each. Every stage has twice the channels of the one before.
VARIANTS = {"50": (64, (3, 4, 6, 3)), "101": (64, (3, 4, 23, 3))}
EXPANSION = 4
EPSILON = 1e-5
kaiming = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3 and 1 x 1 convolutions with a shortcut. Returns the result and the new running statistics."""

    width: int
    stride: int = 1
    projects: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train, scale=None):
        new: dict[str, Any] = {}

        def normalised(y, name, start=1.0):
            norm = layers.BatchNorm(EPSILON, affine=True, start=start, name=name)
            out, new[name] = norm(y, train)
            return out.astype(self.dtype)

        def convolved(y, features, side, name, stride=1):
            return backbone.convolution(
                features, side, stride, padding=side // 2, use_bias=False, init=kaiming, dtype=self.dtype, name=name
            )(y)

        y = nn.relu(normalised(convolved(x, self.width, 1, "conv1"), "bn1"))
        y = nn.relu(normalised(convolved(y, self.width, 3, "conv2", self.stride), "bn2"))
        y = normalised(convolved(y, EXPANSION * self.width, 1, "conv3"), "bn3", start=0.0)
        if self.projects:
            x = convolved(x, EXPANSION * self.width, 1, "downsample_0", self.stride)
            x = normalised(x, "downsample_1")
        return nn.relu(backbone.residual(x, y, scale)), new


class ResNet(backbone.Backbone):
    """The network. Build it with `Model`."""

    width: int = 64

    @property
    def widths(self) -> list[int]:
        """Channels of each stage, inside of its blocks."""
        return [self.width << stage for stage in range(len(self.depths))]

    def setup(self):
        self.conv1 = backbone.convolution(self.width, 7, 2, padding=3, use_bias=False, init=kaiming, dtype=self.dtype)
        self.bn1 = layers.BatchNorm(EPSILON, affine=True)
        block = nn.remat(Bottleneck, static_argnums=(2,)) if self.remat else Bottleneck
        for stage, depth in enumerate(self.depths):
            for number in range(depth):
                stride = 2 if stage and not number else 1
                setattr(self, f"layer{stage + 1}_{number}", block(self.widths[stage], stride, number == 0, self.dtype))
        self.fc = backbone.head(self.num_classes, self.head_init)

    def maps(self, images, train=False, scales=None):
        x, first = self.bn1(self.conv1(images.astype(self.dtype)), train)
        new = {"bn1": first}
        x = pooling.max_pool(nn.relu(x.astype(self.dtype)))
        out, number = [], 0
        for stage, depth in enumerate(self.depths):
            for name in (f"layer{stage + 1}_{n}" for n in range(depth)):
                x, new[name] = getattr(self, name)(x, train, None if scales is None else scales[:, number])
                number += 1
            out.append(x)
        return out, new if train else {}

    def _pooled(self, images, train, scales):
        maps, new = self.maps(images, train, scales)
        return maps[-1].astype(jnp.float32).mean(axis=(1, 2)), new

    def _logits(self, features):
        return self.fc(features)


def Model(variant: str = "", *, conditioning: str = "none", num_levels: int = 0, **fields: Any) -> ResNet:
    """A ResNet by size: variant "50" (the default) or "101"; other fields of `ResNet` by name."""
    sizes = dict(zip(("width", "depths"), backbone.variant_of(VARIANTS, variant), strict=True))
    return ResNet(**backbone.sized(sizes, fields) | backbone.check(fields, conditioning, "ResNet"))


def flops_per_image(model: ResNet, mask_ratio: float = 0.0, training: bool = True) -> float:
    """Operations of the convolutions and the head for one image (2 per multiply-add)."""
    halved = lambda places: tuple(-(-side // 2) for side in places)
    places = halved(sides.of(model.image_size))
    total = math.prod(places) * 49 * model.in_chans * model.width
    places, before = halved(places), model.width
    for stage, depth in enumerate(model.depths):
        width = model.widths[stage]
        after = EXPANSION * width
        for number in range(depth):
            smaller = halved(places) if stage and not number else places
            pixels, fewer = math.prod(places), math.prod(smaller)
            total += pixels * before * width + fewer * width * (9 * width + after)
            total += fewer * before * after if number == 0 else 0
            places, before = smaller, after
    return 2.0 * (total + before * model.num_classes) * (3 if training else 1)


HEADS = ("fc/",)
RULES = Rules(
    heads=HEADS, encodes=lambda name: not name.startswith(HEADS), adapt=backbone.adapt(HEADS),
    stem="conv1/kernel", shift=("bn1/running_mean", -1.0),
)  # fmt: skip
