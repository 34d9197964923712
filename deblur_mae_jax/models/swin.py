"""The 3-D Swin Transformer of MONAI's Swin-UNETR, channels last, with MONAI's parameter names.

Pre-trained weights depend on three quirks of the original, which this file reproduces:

- After the norm, tokens are padded with zeros to whole windows, and the padding takes part in attention.
- If the volume is smaller than a window, the window is cut to the volume and not shifted. Its relative bias is
  read from the top-left corner of the index of the full window, which is not the offset between its tokens.
- Patch merging concatenates eight neighbours. In the `legacy` order (DAE and MONAI up to 1.4) two neighbours
  occur twice and two are missing. MONAI 1.5 changed this order (`monai15`), and has another one (`v2`).
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax import sharding
from deblur_mae_jax.models import layers
from deblur_mae_jax.models.conv3d import EPSILON

WINDOW = 7
# Which of the eight neighbours (depth, height, width) are joined, in this order.
MERGE_ORDERS = {
    "legacy": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
    "monai15": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    "v2": ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)),
}  # fmt: skip
Triple = tuple[int, int, int]


def relative_index(window: Triple) -> np.ndarray:
    """Row of the bias table for every pair of tokens of a window `(N, N)`."""
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in window), indexing="ij")).reshape(3, -1)
    offset = grid[:, :, None] - grid[:, None, :]
    _, h, w = (2 * n - 1 for n in window)
    moved = [offset[i] + window[i] - 1 for i in range(3)]
    return (moved[0] * h * w + moved[1] * w + moved[2]).astype(np.int32)


def fitted(size: tuple[int, ...], shift: int) -> tuple[Triple, Triple]:
    """Window and shift for a volume of this size. Along a shorter axis, the window is cut and not shifted."""
    d, h, w = size
    window = (min(d, WINDOW), min(h, WINDOW), min(w, WINDOW))
    return window, tuple(0 if n <= WINDOW else shift for n in size)  # type: ignore[return-value]


def to_windows(x: jax.Array, window: Triple) -> jax.Array:
    """`(B, D, H, W, C)` -> `(B * windows, tokens, C)`."""
    B, D, H, W, C = x.shape
    d, h, w = window
    x = x.reshape(B, D // d, d, H // h, h, W // w, w, C)
    return x.transpose(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, d * h * w, C)


def from_windows(x: jax.Array, window: Triple, size: tuple[int, ...]) -> jax.Array:
    """The inverse of `to_windows`."""
    (D, H, W), (d, h, w) = size, window
    x = x.reshape(-1, D // d, H // h, W // w, d, h, w, x.shape[-1])
    return x.transpose(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, D, H, W, x.shape[-1])


def regions(size: tuple[int, ...], window: Triple, shift: Triple) -> np.ndarray:
    """Region of every token of every window `(windows, tokens)`.

    After a cyclic shift, a window may hold tokens from opposite ends of the volume. Only tokens of the
    same region attend to each other.
    """
    number = np.zeros(size, np.int32)
    for axis in range(3):
        coordinate = np.arange(size[axis])
        region = (coordinate >= size[axis] - window[axis]).astype(int) + (coordinate >= size[axis] - shift[axis])
        region = region if shift[axis] else np.zeros_like(region)
        number = number * 3 + region.reshape([-1 if i == axis else 1 for i in range(3)])
    blocks = number[None, ..., None]
    D, H, W = size
    d, h, w = window
    blocks = blocks.reshape(D // d, d, H // h, h, W // w, w).transpose(0, 2, 4, 1, 3, 5)
    return blocks.reshape(-1, d * h * w)


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias for every offset between tokens."""

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, region=None):
        """Attention within each window.

        x: tokens `(B * windows, N, C)`.
        region: region of each token `(windows, N)`. Only tokens of the same region attend to each other.
        """
        M, N, C = x.shape
        heads, width = self.num_heads, C // self.num_heads
        table = self.param(
            "relative_position_bias_table",
            nn.initializers.normal(0.02),
            ((2 * WINDOW - 1) ** 3, heads),
        )
        index = relative_index((WINDOW,) * 3)[:N, :N]
        bias = jnp.take(table, index.reshape(-1), axis=0).reshape(N, N, heads).transpose(2, 0, 1)
        qkv = linear(3 * C, C, self.dtype, "qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(M, N, 3, heads, width), 2, 0)
        q = q * jnp.asarray(width**-0.5, self.dtype)
        attend = attend_by_window if sharding.one_cpu() else attend_at_once
        out = attend(q, k, v, bias, region).reshape(M, N, C)
        return linear(C, C, self.dtype, "proj")(out)


def attend_at_once(q, k, v, bias, region=None):
    """Attention of all windows together, with the softmax in float32.

    q, k, v: `(M, N, heads, width)`. M is a multiple of the number of windows of one volume.
    bias: `(heads, N, N)`.
    region: region of each token `(windows, N)`.
    """
    M, N, heads, _ = q.shape
    scores = jnp.einsum("mnhd,mkhd->mhnk", q, k, preferred_element_type=jnp.float32) + bias
    if region is not None:
        mask = _apart(jnp.asarray(region))[None, :, None]
        scores = (scores.reshape(-1, len(region), heads, N, N) + mask).reshape(M, heads, N, N)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("mhnk,mkhd->mnhd", weights, v)


def attend_by_window(q, k, v, bias, region=None):
    """The same as `attend_at_once`, in a loop over the windows. The backward pass computes the scores again.

    On a CPU, the scores of one window (343 x 343 for every head) stay in the cache. Those of all windows are hundreds
    of megabytes, which are written to memory a dozen times. The loop is four times as fast, forward and backward.
    """
    M = q.shape[0]
    number = np.zeros(M, np.int32) if region is None else np.arange(M, dtype=np.int32) % len(region)

    @jax.checkpoint
    def one(window):
        q, k, v, number = window
        scores = jnp.einsum("nhd,khd->hnk", q, k, preferred_element_type=jnp.float32) + bias
        if region is not None:
            scores = scores + _apart(jnp.asarray(region)[number])
        weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
        out = jnp.einsum("hnk,khd->nhd", weights.astype(v.dtype), v)
        return (out / weights.sum(-1).T[..., None]).astype(v.dtype)

    return jax.lax.map(one, (q, k, v, jnp.asarray(number)))


def _apart(region: jax.Array) -> jax.Array:
    """-100 between tokens of different regions `(..., N)` -> `(..., N, N)`."""
    return jnp.where(region[..., :, None] != region[..., None, :], -100.0, 0.0)


class Linear(nn.Module):
    """A linear layer with PyTorch's default initialisation, and the gradient of its bias summed in float32."""

    features: int
    fan_in: int
    dtype: Any
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        init = layers.torch_uniform(self.fan_in)
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        y = x.astype(self.dtype) @ kernel.astype(self.dtype)
        return layers.shift(y, self.param("bias", init, (self.features,))) if self.use_bias else y


def linear(features: int, fan_in: int, dtype: Any, name: str, use_bias: bool = True) -> Linear:
    """A linear layer of this name."""
    return Linear(features, fan_in, dtype, use_bias, name=name)


def layer_norm(dtype: Any, name: str | None) -> nn.LayerNorm:
    """Statistics in float32."""
    return nn.LayerNorm(epsilon=EPSILON, dtype=dtype, use_fast_variance=False, name=name)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        C = x.shape[-1]
        x = layers.gelu(linear(self.hidden, C, self.dtype, "linear1")(x))
        return linear(C, self.hidden, self.dtype, "linear2")(x)


class Block(nn.Module):
    """Window attention and MLP with residuals; `shift` moves the windows by half their side."""

    num_heads: int
    shift: int = 0
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        size = x.shape[1:4]
        window, shift = fitted(size, self.shift)
        y = layer_norm(self.dtype, "norm1")(x)
        extra = [-n % w for n, w in zip(size, window, strict=True)]
        y = jnp.pad(y, ((0, 0), *((0, e) for e in extra), (0, 0)))
        padded = y.shape[1:4]
        shifted = any(shift)
        if shifted:
            y = jnp.roll(y, tuple(-s for s in shift), (1, 2, 3))
        region = regions(padded, window, shift) if shifted else None
        attend = WindowAttention(self.num_heads, self.dtype, name="attn")
        y = from_windows(attend(to_windows(y, window), region), window, padded)
        if shifted:
            y = jnp.roll(y, shift, (1, 2, 3))
        x = x + y[:, : size[0], : size[1], : size[2]]
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), self.dtype, name="mlp")
        return x + mlp(layer_norm(self.dtype, "norm2")(x))


class PatchMerging(nn.Module):
    """Half the sides, twice the channels."""

    order: str = "monai15"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        C = x.shape[-1]
        x = jnp.pad(x, ((0, 0), *((0, n % 2) for n in x.shape[1:4]), (0, 0)))
        neighbours = [x[:, i::2, j::2, k::2] for i, j, k in MERGE_ORDERS[self.order]]
        x = layer_norm(self.dtype, "norm")(jnp.concatenate(neighbours, axis=-1))
        return linear(2 * C, 8 * C, self.dtype, "reduction", use_bias=False)(x)


class Stage(nn.Module):
    """Blocks, every second one shifted, then merging."""

    depth: int
    num_heads: int
    merge_order: str = "monai15"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        for number in range(self.depth):
            shift = WINDOW // 2 if number % 2 else 0
            x = Block(self.num_heads, shift, dtype=self.dtype, name=f"blocks_{number}")(x)
        return PatchMerging(self.merge_order, self.dtype, name="downsample")(x)
