"""2-D convolutions with PyTorch's padding, fast on CPUs too.

On a CPU, XLA's convolution with a kernel of one pixel takes three to six times as long as the matrix product that it
is, and a depthwise one twenty times as long as sums of shifted images; kernels of 3 x 3 have fewer products in
Winograd's form (`winograd.py`). Other devices use XLA's convolution throughout.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deblur_mae_jax import sharding
from deblur_mae_jax.models import layers, winograd

LAYOUT = ("NHWC", "HWIO", "NHWC")
# Channels, in and out, from which Winograd's form of 3 x 3 kernels is faster (docs/performance-cpu.md), and products
# per place of the kernel from which it repays two thirds of a second of compilation.
CHANNELS, WORK = 64, 2**25


class Convolution(nn.Module):
    """A convolution of `(B, H, W, C)` with the parameters of `nn.Conv`; it pads both ends of an axis alike.

    side, stride, padding: in pixels.
    groups: C for one kernel per channel, 1 for kernels of all channels.
    """

    features: int
    side: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    use_bias: bool = True
    kernel_init: Any = nn.initializers.lecun_normal()
    bias_init: Any = nn.initializers.zeros
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (self.side, self.side, x.shape[-1] // self.groups, self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        y = convolve(x, kernel, self.stride, self.padding, self.groups)
        return y if bias is None else layers.shift(y, bias)


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1, padding: int = 0, groups: int = 1) -> jax.Array:
    """Convolve `(B, H, W, C)` with `(k, k, C / groups, D)`.

    stride: step in pixels.
    padding: pixels of zeros on each side.
    groups: 1, or C with D = C.
    """
    (B, H, W, C), k = x.shape, kernel.shape[0]
    if jax.default_backend() == "cpu" and not padding and groups == 1:
        if k == 1:  # reads one pixel of each step
            return layers.linear(x[:, ::stride, ::stride], kernel[0, 0])
        if k == stride:  # reads every pixel once
            x = x[:, : H // k * k, : W // k * k].reshape(B, H // k, k, W // k, k, C).transpose(0, 1, 3, 2, 4, 5)
            return layers.linear(x.reshape(B, H // k, W // k, k * k * C), kernel.reshape(k * k * C, -1))
    if jax.default_backend() == "cpu" and groups == C > 1 and stride == 1 and k == 2 * padding + 1:
        return depthwise(x, kernel)
    D, square = kernel.shape[-1], k == 3 and groups == stride == padding == 1
    if square and sharding.one_cpu() and min(C, D) >= CHANNELS and x.size * D >= WORK:
        return winograd.convolve(x, kernel)
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=LAYOUT, feature_group_count=groups
    )


@jax.custom_vjp
def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve each channel of `(B, H, W, C)` with its own kernel of `(k, k, 1, C)`, by a sum of k^2 shifted images."""
    return _shifted(x, kernel)


def _padded(x: jax.Array, side: int) -> jax.Array:
    return jnp.pad(x, ((0, 0), *[(side // 2, side // 2)] * 2, (0, 0)))


def _shifted(x: jax.Array, kernel: jax.Array) -> jax.Array:
    k, (_, H, W, _), wide = kernel.shape[0], x.shape, _padded(x, kernel.shape[0])
    exact = lambda array: array.astype(jnp.float32)  # k^2 sums in bfloat16 would lose two digits
    terms = (exact(wide[:, i : i + H, j : j + W]) * exact(kernel[i, j, 0]) for i in range(k) for j in range(k))
    return sum(terms, start=jnp.zeros((), jnp.float32)).astype(x.dtype)


def _of_kernel(x: jax.Array, gradient: jax.Array, k: int) -> jax.Array:
    """The gradient of the kernel `(k, k, 1, C)`, place by place: the sums `(B, k, k, C)` stay in the cache.

    The sum over the images comes last, so that devices which hold different images need to communicate once.
    """
    (B, H, W, C), wide = x.shape, _padded(x, k)

    def add(place, total):
        row, column = place // W, place % W
        seen = jax.lax.dynamic_slice(wide, (0, row, column, 0), (B, k, k, C))
        own = jax.lax.dynamic_slice(gradient, (0, row, column, 0), (B, 1, 1, C))
        return total + seen.astype(jnp.float32) * own.astype(jnp.float32)

    total = jax.lax.fori_loop(0, H * W, add, jnp.zeros((B, k, k, C), jnp.float32))
    return total.sum(axis=0)[:, :, None].astype(x.dtype)


def _backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    return _shifted(gradient, kernel[::-1, ::-1]), _of_kernel(x, gradient, kernel.shape[0])


depthwise.defvjp(lambda x, kernel: (_shifted(x, kernel), (x, kernel)), _backward)
