"""The decoder of U-Net++ (Zhou et al. 2018), with the nodes and widths of segmentation_models_pytorch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from deblur_mae_jax.models import conv2d

# Widths of the main path, from the deepest map upwards.
WIDTHS = (256, 128, 64, 32)


class Node(nn.Module):
    """Doubles the sides of a map, concatenates others, and applies two convolutions."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, skips, train):
        x = jnp.concatenate([conv2d.double(x), *skips], axis=-1)
        new = {}
        for name in ("conv1", "conv2"):
            x, new[name] = conv2d.ConvNormReLU(self.features, 3, self.dtype, name=name)(x, train)
        return x, new


class UNetPP(nn.Module):
    """Maps of four sides, each half of the one before, to logits at twice the sides of the first."""

    num_classes: int
    widths: Sequence[int] = WIDTHS
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps, train):
        """maps: `(B, h, w, D)`, the largest first. Returns logits, {} and the new running statistics."""
        deep = maps[::-1]
        last = len(deep) - 1
        nodes, new = {}, {}

        def node(name, features, x, skips):
            nodes[name], new[name] = Node(features, self.dtype, name=name)(x, skips, train)

        for reach in range(last):
            for start in range(last - reach):
                end = start + reach
                features = self.widths[end] if start == 0 else deep[end + 1].shape[-1]
                before = nodes[f"x_{start}_{end - 1}"] if reach else deep[start]
                skips = [nodes[f"x_{other}_{end}"] for other in range(start + 1, end + 1)] if reach else []
                node(f"x_{start}_{end}", features, before, [*skips, deep[end + 1]])
        node(f"x_0_{last}", self.widths[last], nodes[f"x_0_{last - 1}"], [])
        out = nn.Conv(self.num_classes, (3, 3), padding=1, name="out")(nodes[f"x_0_{last}"].astype(jnp.float32))
        return out, {}, new if train else {}


def flops(places: Sequence[int], channels: Sequence[int], num_classes: int, widths: Sequence[int] = WIDTHS) -> float:
    """Operations for one image (2 per multiply-add).

    places: pixels of the maps, the largest first.
    channels: of the maps.
    """
    deep, total = list(channels)[::-1], 0.0
    last = len(deep) - 1
    for reach in range(last):
        for start in range(last - reach):
            end = start + reach
            after = widths[end] if start == 0 else deep[end + 1]
            before = (widths[end - 1] if start == 0 else deep[end]) if reach else deep[start]
            before += deep[end + 1] * (reach + 1)
            pixels = list(places)[::-1][end + 1]
            total += conv2d.flops(pixels, before, after, 3) + conv2d.flops(pixels, after, after, 3)
    pixels = 4 * places[0]
    total += conv2d.flops(pixels, widths[last - 1], widths[last], 3) + conv2d.flops(
        pixels, widths[last], widths[last], 3
    )
    return total + conv2d.flops(pixels, widths[last], num_classes, 3)
