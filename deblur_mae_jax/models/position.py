"""Fixed sine-cosine tables: positions of patches, and the level of blur."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax import sides

# Rows and columns of patches; one number if they are equal.
Grid = int | tuple[int, ...]


def _sincos_1d(dim: int, positions: np.ndarray) -> np.ndarray:
    omega = 1.0 / 10000 ** (np.arange(dim // 2, dtype=np.float64) / (dim / 2.0))
    angles = positions.reshape(-1, 1) * omega[None]
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def sincos_2d(dim: int, grid: Grid, extra_tokens: int = 1) -> np.ndarray:
    """MAE's table `(extra_tokens + patches, dim)` float32, row-major.

    grid: rows and columns of patches; one number if they are equal.

    The first half of the channels encodes the column, the second half the row; the rows of the extra
    tokens (cls, and D2MAE's blur token) are zero.
    """
    if dim % 4:
        raise ValueError(f"dim={dim} must be divisible by 4")
    height, width = sides.of(grid)
    row, col = np.mgrid[:height, :width].astype(np.float64)
    table = np.concatenate([_sincos_1d(dim // 2, col), _sincos_1d(dim // 2, row)], axis=1)
    return np.concatenate([np.zeros((extra_tokens, dim)), table]).astype(np.float32)


def sincos_2d_quarters(dim: int, grid: Grid, extra_tokens: int = 1) -> np.ndarray:
    """MoCo v3's table, as `sincos_2d` with other channels: quarters [sin row, cos row, sin column, cos column]."""
    table = sincos_2d(dim, grid, extra_tokens)
    return np.concatenate([table[:, dim // 2 :], table[:, : dim // 2]], axis=1)


def sincos_level(level: jax.Array, dim: int) -> jax.Array:
    """DDPM's embedding of an integer level: `(B,)` -> `(B, dim)` float32, [sin, cos] halves."""
    half = dim // 2
    frequency = np.exp(-np.log(10000.0) * np.arange(half) / (half - 1)).astype(np.float32)
    angles = level.astype(jnp.float32)[:, None] * frequency
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _cubic_matrix(old: int, new: int) -> np.ndarray:
    """Rows of PyTorch's bicubic interpolation `(new, old)`: a = -3/4, no antialiasing, border kept."""

    def kernel(x, a=-0.75):
        x = np.abs(x)
        near = (a + 2) * x**3 - (a + 3) * x**2 + 1
        far = a * (x**3 - 5 * x**2 + 8 * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    centre = (np.arange(new) + 0.5) * old / new - 0.5
    first = np.floor(centre).astype(int)
    matrix = np.zeros((new, old))
    for offset in range(-1, 3):
        column = np.clip(first + offset, 0, old - 1)
        np.add.at(matrix, (np.arange(new), column), kernel(centre - (first + offset)))
    return matrix


def resized(table: jax.Array, before: Grid, grid: Grid, extra_tokens: int = 1) -> jax.Array:
    """As `resize_table`, inside of a compiled program."""
    old, new = sides.of(before), sides.of(grid)
    if old == new:
        return table
    rows, columns = (jnp.asarray(_cubic_matrix(*pair), jnp.float32) for pair in zip(old, new, strict=True))
    patches = table[0, extra_tokens:].reshape(*old, -1)
    patches = jnp.einsum("yi,xj,ijd->yxd", rows, columns, patches, precision="highest")
    return jnp.concatenate([table[:, :extra_tokens], patches.reshape(1, new[0] * new[1], -1)], axis=1)


def resize_table(table: np.ndarray, before: Grid, grid: Grid, extra_tokens: int = 1) -> np.ndarray:
    """A position table `(1, extra_tokens + L, dim)` for another number of patches, as MAE resizes it.

    before: rows and columns of patches of the table; one number if they are equal.
    grid: those wanted.
    """
    old, new = sides.of(before), sides.of(grid)
    if old == new:
        return table
    extra, patches = table[:, :extra_tokens], table[0, extra_tokens:].reshape(*old, -1)
    rows, columns = (_cubic_matrix(*pair) for pair in zip(old, new, strict=True))
    resized = np.einsum("yi,xj,ijd->yxd", rows, columns, patches.astype(np.float64), optimize=True)
    return np.concatenate([extra, resized.reshape(1, new[0] * new[1], -1).astype(table.dtype)], axis=1)


def with_prefix(table: np.ndarray, before: int, after: int) -> np.ndarray:
    """A position table `(1, before + L, dim)` for `after` tokens before the patches; the last ones are 0 or left out.

    The token of the blur level is the last of them.
    """
    added = np.zeros((1, max(after - before, 0), table.shape[2]), table.dtype)
    return np.concatenate([table[:, : min(before, after)], added, table[:, before:]], axis=1)
