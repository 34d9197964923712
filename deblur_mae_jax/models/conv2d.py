"""Parts of 2-D segmentation decoders: convolutions with BatchNorm, and resizing as PyTorch does it."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax.models import backbone, layers

EPSILON = 1e-5
# PyTorch's initialisation of decoders: Kaiming-uniform by the inputs (U-Net++), or normal (UPerNet).
kaiming = nn.initializers.variance_scaling(2.0, "fan_in", "uniform")


class ConvNormReLU(nn.Module):
    """A convolution without bias, BatchNorm, ReLU. Returns the result and the new running statistics."""

    features: int
    side: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train):
        x = backbone.convolution(
            self.features, self.side, padding=self.side // 2, use_bias=False, init=kaiming, dtype=self.dtype,
            name="conv",
        )(x)  # fmt: skip
        x, new = layers.BatchNorm(EPSILON, affine=True, name="norm")(x, train)
        return nn.relu(x.astype(self.dtype)), {"norm": new} if train else {}


def resize(x: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Bilinear interpolation of `(B, H, W, C)` to other sides, without antialiasing (align_corners=False)."""
    if x.shape[1:3] == tuple(shape):
        return x
    return jax.image.resize(x, (x.shape[0], *shape, x.shape[3]), "bilinear", antialias=False)


def double(x: jax.Array) -> jax.Array:
    """`(B, H, W, C)` -> `(B, 2H, 2W, C)`, each value four times."""
    B, H, W, C = x.shape
    return jnp.broadcast_to(x[:, :, None, :, None], (B, H, 2, W, 2, C)).reshape(B, 2 * H, 2 * W, C)


def pool_matrix(size: int, bins: int) -> np.ndarray:
    """The means of PyTorch's adaptive pooling along one axis `(bins, size)`; the bins may overlap."""
    out = np.zeros((bins, size), np.float32)
    for number in range(bins):
        start, stop = number * size // bins, -(-(number + 1) * size // bins)
        out[number, start:stop] = 1 / (stop - start)
    return out


def flops(places: float, before: int, after: int, side: int) -> float:
    """Operations of a convolution (2 per multiply-add)."""
    return 2.0 * places * before * after * side**2
