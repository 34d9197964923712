"""Reduce the resolution by down- and up-sampling, as in Disruptive Autoencoders (MIDL 2024, section 3.2)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from deblur_mae_jax.degradations.contract import Degradation, fixed

METHODS = ("linear", "nearest")


def interpolation(rows: int, columns: int, out: Any, length: Any, method: str) -> jax.Array:
    """PyTorch's `interpolate` of an axis from `length` to `out` pixels, as a matrix `(rows, columns)`.

    There is no antialiasing, and corners are not aligned. `out` and `length` may be traced; entries beyond them are
    zero.
    """
    i, j = jnp.arange(rows)[:, None], jnp.arange(columns)[None]
    scale = jnp.asarray(length, jnp.float32) / jnp.asarray(out, jnp.float32)
    if method == "nearest":
        weight = (j == jnp.floor(i * scale).astype(jnp.int32)).astype(jnp.float32)
    else:
        coordinate = jnp.clip((i + 0.5) * scale - 0.5, 0, length - 1)
        weight = jnp.maximum(1 - jnp.abs(j - coordinate), 0.0)
    return jnp.where((i < out) & (j < length), weight, 0.0)


def down_up(factor: int = 4, method: str = "linear") -> Degradation:
    """Down-sample every side by `factor` and up-sample it again: the super-resolution disruption.

    factor: reduction of every side.
    method: "linear" (bilinear or trilinear, as in the paper) or "nearest" (as in the published code).
    """
    if method not in METHODS:
        raise ValueError(f"method: unknown name '{method}'. Choices: {', '.join(METHODS)}.")
    if factor < 1:
        raise ValueError(f"factor={factor} must be at least 1")

    def apply(image, size):
        for axis, columns in enumerate(image.shape[:-1]):
            length = columns if size is None else size[axis]
            low = jnp.maximum(length // factor, 1)
            rows = max(1, columns // factor)
            down = interpolation(rows, columns, low, length, method)
            up = interpolation(columns, rows, length, low, method)
            precise = jax.lax.Precision.HIGHEST
            both = jnp.matmul(up, down, precision=precise).astype(image.dtype)
            image = jnp.moveaxis(jnp.tensordot(both, image, (1, axis), precision=precise), 0, axis)
        return image

    return fixed(apply)
