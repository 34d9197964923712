"""Fixed sine-cosine tables: positions of patches, and the level of blur."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def _sincos_1d(dim: int, positions: np.ndarray) -> np.ndarray:
    omega = 1.0 / 10000 ** (np.arange(dim // 2, dtype=np.float64) / (dim / 2.0))
    angles = positions.reshape(-1, 1) * omega[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(dim: int, grid: int, extra_tokens: int = 1) -> np.ndarray:
    """MAE's table `(extra_tokens + grid * grid, dim)` float32, row-major.

    The first half of the channels encodes the column, the second half the row; the rows of the extra
    tokens (cls, and D2MAE's blur token) are zero.
    """
    if dim % 4:
        raise ValueError(f"dim={dim} must be divisible by 4")
    row, col = np.mgrid[:grid, :grid].astype(np.float64)
    table = np.concatenate([_sincos_1d(dim // 2, col), _sincos_1d(dim // 2, row)], axis=1)
    return np.concatenate([np.zeros((extra_tokens, dim)), table]).astype(np.float32)


def sincos_level(level: jax.Array, dim: int) -> jax.Array:
    """DDPM's embedding of an integer level: `(B,)` -> `(B, dim)` float32, [sin, cos] halves."""
    half = dim // 2
    frequency = np.exp(-np.log(10000.0) * np.arange(half) / (half - 1)).astype(np.float32)
    angles = level.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
