"""The decoder of UPerNet (Xiao et al. 2018): pooling over pyramids, a feature pyramid, and a second head."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from deblur_mae_jax.models import backbone, conv2d

# Bins of the pyramid pooling; the map that the second head sees, and its width.
BINS = (1, 2, 3, 6)
SECOND, SECOND_WIDTH = 2, 256
WIDTH = 512


class UPerNet(nn.Module):
    """Maps of four sides to logits at the sides of the first."""

    num_classes: int
    width: int = WIDTH
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps, train):
        """maps: `(B, h, w, D)`, the largest first.

        Returns logits, `auxiliary` (the logits of the second head), and the new running statistics.
        """
        new = {}

        def convolve(x, side, name, features=self.width):
            y, new[name] = conv2d.ConvNormReLU(features, side, self.dtype, name=name)(x, train)
            return y

        shape = lambda x: x.shape[1:3]
        last, pooled = maps[-1], []
        for number, bins in enumerate(BINS):
            rows, columns = (jnp.asarray(conv2d.pool_matrix(n, bins), last.dtype) for n in shape(last))
            x = jnp.einsum("bhwc,ih,jw->bijc", last, rows, columns)
            pooled.append(conv2d.resize(convolve(x, 1, f"pool_{number}"), shape(last)))
        x = convolve(jnp.concatenate([last, *pooled], axis=-1), 3, "bottleneck")
        paths = [convolve(y, 1, f"lateral_{number}") for number, y in enumerate(maps[:-1])] + [x]
        for number in range(len(paths) - 1, 0, -1):
            paths[number - 1] += conv2d.resize(paths[number], shape(paths[number - 1]))
        paths = [convolve(y, 3, f"fpn_{number}") for number, y in enumerate(paths[:-1])] + [paths[-1]]
        together = jnp.concatenate([conv2d.resize(y, shape(paths[0])) for y in paths], axis=-1)
        x = convolve(together, 3, "fpn_bottleneck")
        logits = backbone.convolution(self.num_classes, 1, name="out")(x.astype(jnp.float32))
        x = convolve(maps[SECOND], 3, "auxiliary", SECOND_WIDTH)
        auxiliary = backbone.convolution(self.num_classes, 1, name="auxiliary_out")(x.astype(jnp.float32))
        return logits, {"auxiliary": auxiliary}, new if train else {}


def flops(places: Sequence[int], channels: Sequence[int], num_classes: int, width: int = WIDTH) -> float:
    """Operations for one image (2 per multiply-add).

    places: pixels of the maps, the largest first.
    channels: of the maps.
    """
    total = sum(conv2d.flops(bins**2, channels[-1], width, 1) for bins in BINS)
    total += conv2d.flops(places[-1], channels[-1] + len(BINS) * width, width, 3)
    for count, before in zip(places[:-1], channels[:-1], strict=True):
        total += conv2d.flops(count, before, width, 1) + conv2d.flops(count, width, width, 3)
    total += conv2d.flops(places[0], len(places) * width, width, 3) + conv2d.flops(places[0], width, num_classes, 1)
    total += conv2d.flops(places[SECOND], channels[SECOND], SECOND_WIDTH, 3)
    return total + conv2d.flops(places[SECOND], SECOND_WIDTH, num_classes, 1)
