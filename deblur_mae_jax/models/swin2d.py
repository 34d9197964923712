"""Swin Transformer (Liu et al. 2021) for 2-D images, channels last, with the names of timm 0.9 and later."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import backbone, layers, swin
from deblur_mae_jax.models.backbone import AXES, KINDS
from deblur_mae_jax.models.contract import Adapted, Flat, Rules

__all__ = ["AXES", "KINDS", "RULES", "Model", "flops_per_image"]
# Channels of the first stage, and blocks of each. Every stage has twice the channels of the one before.
VARIANTS = {"T": (96, (2, 2, 6, 2)), "S": (96, (2, 2, 18, 2)), "B": (128, (2, 2, 18, 2)), "L": (192, (2, 2, 18, 2))}
HEAD_WIDTH = 32
PATCH = 4
# Neighbours (row, column) that are merged, in this order. It is not that of the 3-D Swin.
MERGED = ((0, 0), (1, 0), (0, 1), (1, 1))


def relative_index(window: tuple[int, ...]) -> np.ndarray:
    """Row of the bias table for every pair of tokens of a window `(N, N)`.

    window: rows and columns of tokens.
    """
    height, width = window
    grid = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij")).reshape(2, -1)
    down, across = grid[:, :, None] - grid[:, None, :]
    return ((down + height - 1) * (2 * width - 1) + across + width - 1).astype(np.int32)


def offsets(window: tuple[int, ...]) -> int:
    """Rows of the bias table: the offsets between two tokens of a window."""
    return math.prod(2 * side - 1 for side in window)


def fitted(places: tuple[int, ...], window: int, shift: int = 0) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Window and shift for a map with these sides. Along a side that is not larger, one window covers it, unshifted."""
    larger = [side > window for side in places]
    cut = tuple(window if more else side for side, more in zip(places, larger, strict=True))
    return cut, tuple(shift if more else 0 for more in larger)


def to_windows(x: Any, window: tuple[int, ...]) -> Any:
    """`(B, H, W, C)` -> `(B * windows, N, C)`."""
    (B, H, W, C), (h, w) = x.shape, window
    return x.reshape(B, H // h, h, W // w, w, C).transpose(0, 1, 3, 2, 4, 5).reshape(-1, h * w, C)


def from_windows(x: jax.Array, window: tuple[int, ...], H: int, W: int) -> jax.Array:
    """The inverse of `to_windows`."""
    h, w = window
    x = x.reshape(-1, H // h, W // w, h, w, x.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, H, W, x.shape[-1])


def regions(places: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> np.ndarray:
    """Region of every token of every window `(windows, N)`: after a shift, only tokens of one region attend."""

    def of(side: int, window: int, shift: int) -> np.ndarray:
        number = np.arange(side)
        return ((number >= side - window).astype(np.int32) + (number >= side - shift)) * (shift > 0)

    rows, columns = (of(*numbers) for numbers in zip(places, window, shift, strict=True))
    return to_windows((3 * rows[:, None] + columns[None])[None, ..., None], window)[..., 0]


class WindowAttention(nn.Module):
    """Attention within windows, with a learned bias for every offset between tokens."""

    num_heads: int
    window: tuple[int, ...]
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, region=None):
        """x: tokens `(B * windows, N, C)`; region: region of each token `(windows, N)`."""
        M, N, C = x.shape
        shape = (offsets(self.window), self.num_heads)
        table = self.param("relative_position_bias_table", backbone.normal, shape)
        bias = jnp.take(table, relative_index(self.window).reshape(-1), axis=0)
        bias = bias.reshape(N, N, self.num_heads).transpose(2, 0, 1)
        qkv = layers.dense(3 * C, self.dtype, "qkv", backbone.normal)(x)
        q, k, v = jnp.moveaxis(qkv.reshape(M, N, 3, self.num_heads, C // self.num_heads), 2, 0)
        q = q * jnp.asarray((C // self.num_heads) ** -0.5, self.dtype)
        out = swin.attend_at_once(q, k, v, bias, region).reshape(M, N, C)
        return layers.dense(C, self.dtype, "proj", backbone.normal)(out)


class Block(nn.Module):
    """Window attention and an MLP."""

    num_heads: int
    window: int
    shift: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, scale=None):
        _, H, W, C = x.shape
        window, shift = fitted((H, W), self.window, self.shift)
        y = swin.layer_norm(self.dtype, "norm1")(x)
        shifted = any(shift)
        y = jnp.roll(y, (-shift[0], -shift[1]), (1, 2)) if shifted else y
        y = jnp.pad(y, ((0, 0), (0, -H % window[0]), (0, -W % window[1]), (0, 0)))
        padded = y.shape[1], y.shape[2]
        region = regions(padded, window, shift) if shifted else None
        attention = WindowAttention(self.num_heads, window, self.dtype, name="attn")
        y = from_windows(attention(to_windows(y, window), region), window, padded[0], padded[1])[:, :H, :W]
        scales = (None, None) if scale is None else (scale[:, 0], scale[:, 1])
        x = backbone.residual(x, jnp.roll(y, shift, (1, 2)) if shifted else y, scales[0])
        mlp = layers.Mlp(4 * C, self.dtype, backbone.normal, name="mlp")
        return backbone.residual(x, mlp(swin.layer_norm(self.dtype, "norm2")(x)), scales[1])


class PatchMerging(nn.Module):
    """Half the sides, twice the channels."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        C = x.shape[-1]
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        x = jnp.concatenate([x[:, row::2, column::2] for row, column in MERGED], axis=-1)
        x = swin.layer_norm(self.dtype, "norm")(x)
        return nn.Dense(2 * C, use_bias=False, kernel_init=backbone.normal, dtype=self.dtype, name="reduction")(x)


class Stage(nn.Module):
    """A merging, except in the first stage, and blocks, every second one shifted."""

    depth: int
    num_heads: int
    window: int
    merges: bool
    dtype: Any = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x, scales=None):
        if self.merges:
            x = PatchMerging(self.dtype, name="downsample")(x)
        block = nn.remat(Block) if self.remat else Block
        for number in range(self.depth):
            shift = self.window // 2 if number % 2 else 0
            scale = None if scales is None else scales[:, number]
            x = block(self.num_heads, self.window, shift, self.dtype, name=f"blocks_{number}")(x, scale)
        return x


class PatchEmbed(nn.Module):
    """Patches of 4 x 4 pixels, and a norm."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = backbone.convolution(self.features, PATCH, PATCH, dtype=self.dtype, name="proj")(x)
        return swin.layer_norm(self.dtype, "norm")(x)


class Head(nn.Module):
    """The classes."""

    num_classes: int
    head_init: float

    @nn.compact
    def __call__(self, x):
        return backbone.head(self.num_classes, self.head_init, "fc")(x)


class Swin(backbone.Backbone):
    """The network. Build it with `Model`."""

    branches: ClassVar[int] = 2  # attention and MLP
    width: int = 96
    window: int = 7

    @property
    def num_heads(self) -> list[int]:
        """Attention heads of each stage."""
        return [max(1, (self.width << stage) // HEAD_WIDTH) for stage in range(len(self.depths))]

    def setup(self):
        self.patch_embed = PatchEmbed(self.width, self.dtype)
        self.layers = [
            Stage(depth, heads, self.window, number > 0, self.dtype, self.remat)
            for number, (depth, heads) in enumerate(zip(self.depths, self.num_heads, strict=True))
        ]
        self.norm = swin.layer_norm(jnp.float32, None)
        self.head = Head(self.num_classes, self.head_init)

    def maps(self, images, train=False, scales=None, hide=None):
        """As of `Backbone`.

        hide: a function that is applied to the embedded patches `(B, H / 4, W / 4, D)`.
        """
        x = self.patch_embed(images.astype(self.dtype))
        x = x if hide is None else hide(x)
        out, done = [], 0
        for stage, depth in zip(self.layers, self.depths, strict=True):
            x = stage(x, None if scales is None else scales[:, done : done + depth])
            done += depth
            out.append(x)
        return out, {}

    def _pooled(self, images, train, scales):
        x = self.maps(images, scales=scales)[0][-1]
        return self.norm(x.astype(jnp.float32)).mean(axis=(1, 2)), {}

    def _logits(self, features):
        return self.head(features)


def Model(
    variant: str = "", *, window: int = 7, conditioning: str = "none", num_levels: int = 0, **fields: Any
) -> Swin:
    """A Swin by size: variant "T" (the default), "S", "B" or "L"; other fields of `Swin` by name.

    window: side of a window, tokens: 7, or 12 for images of 384 pixels.
    """
    sizes = dict(zip(("width", "depths"), backbone.variant_of(VARIANTS, variant), strict=True))
    size = fields.get("image_size", 224)
    if not sides.fits(size, PATCH) or min(sides.of(size)) < 8 * PATCH:
        raise UserError(f"config.image_size={size}: every side must be a multiple of {PATCH}, and at least {8 * PATCH}")
    if window < 2:
        raise UserError(f"config.model.window={window} must be at least 2")
    return Swin(window=window, **backbone.sized(sizes, fields) | backbone.check(fields, conditioning, "Swin"))


def flops_per_image(model: Swin, mask_ratio: float = 0.0, training: bool = True) -> float:
    """Operations of the matrix products for one image (2 per multiply-add)."""
    C, total = model.width, 0.0
    for stage, (places, depth) in enumerate(zip(maps_of(model), model.depths, strict=True)):
        tokens, window = math.prod(places), fitted(places, model.window)[0]
        if stage:
            C = 2 * C
        total += tokens * (2 * C * C if stage else PATCH**2 * model.in_chans * C)
        padded = math.prod(-(-side // w) * w for side, w in zip(places, window, strict=True))
        total += depth * (4 * C * C * padded + 2 * padded * math.prod(window) * C + 8 * C * C * tokens)
    return 2.0 * (total + C * model.num_classes) * (3 if training else 1)


def maps_of(model: Any) -> list[tuple[int, ...]]:
    """Rows and columns of the map of each stage."""
    out = [sides.divided(model.image_size, PATCH)]
    for _ in model.depths[1:]:
        out.append(tuple(-(-side // 2) for side in out[-1]))
    return out


def layers_of(model: Swin) -> tuple[int, Callable[[str], int]]:
    """Layers for layer-wise learning rates: the patch embedding, each block, and what follows."""
    first = np.cumsum([1, *model.depths])

    def layer(name: str) -> int:
        where = backbone.place(name, "layers")
        if where is None:
            return 0 if name.startswith("patch_embed") else int(first[-1])
        return int(first[where[0]] + where[1])

    return int(first[-1]), layer


def resized(table: np.ndarray, before: tuple[int, ...], window: tuple[int, ...]) -> np.ndarray:
    """A table of biases for another window, `(offsets, heads)`, as timm resizes it.

    before: rows and columns of tokens of the table's window.
    window: those wanted.

    The old offsets are placed at distances that grow geometrically from the centre, so that those near it keep their
    distance of one token; the values at the new offsets are interpolated linearly (BEiT's code: by cubic splines).
    Offsets beyond the last place have its value.
    """
    from scipy import interpolate  # takes a quarter of a second, which most runs need not wait

    read, at = zip(*(_places(*pair) for pair in zip(before, window, strict=True)), strict=True)
    grid = table.astype(np.float64).reshape(*(len(places) for places in read), -1)
    wanted = np.stack(np.meshgrid(*at, indexing="ij"), axis=-1)
    return interpolate.RegularGridInterpolator(read, grid)(wanted).reshape(offsets(window), -1).astype(np.float32)


def _places(before: int, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the old offsets along one axis are placed, and where the new ones are read."""
    half, reach = before - 1, window - 1
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        low, high = (low, ratio) if (1 - ratio**half) / (1 - ratio) > reach else (ratio, high)
    steps = np.cumsum(ratio ** np.arange(half))
    places, wanted = np.concatenate([-steps[::-1], [0.0], steps]), np.arange(-reach, reach + 1.0)
    return places, np.clip(wanted, places[0], places[-1])


def adapt(weights: Flat, needed: Flat, before: Swin, model: Swin) -> Adapted:
    """All parameters but the head; the tables of biases are resized for another window (`resized`)."""
    out, changed = dict(weights), 0
    for name, value in weights.items():
        where = backbone.place(name, "layers")
        if name.endswith("relative_position_bias_table") and name in needed and where is not None:
            old, new = (fitted(maps_of(of)[where[0]], of.window)[0] for of in (before, model))
            if old != new:
                out[name] = resized(np.asarray(value), old, new)
                changed += 1
    note = f"{changed} relative_position_bias_table" if changed else ""
    return Adapted(out, lambda name: name.startswith(("head/", "norm/")), note)


HEADS = ("head/",)
RULES = Rules(
    undecayed=("relative_position_bias_table",), layers=layers_of, heads=HEADS,
    encodes=lambda name: not name.startswith(HEADS), adapt=adapt, stem="patch_embed/proj/kernel",
    shift=("patch_embed/proj/bias", 1.0),
)  # fmt: skip
