"""Patches and random masking (He et al. 2022, section 3), for images `(B, H, W, C)`."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from deblur_mae_jax import sides


def patchify(images: jax.Array, patch_size: int) -> jax.Array:
    """`(B, H, W, C)` -> `(B, L, P*P*C)`: row-major patches, inside a patch (row, column, channel)."""
    B, H, W, C = images.shape
    P = patch_size
    x = images.reshape(B, H // P, P, W // P, P, C)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, (H // P) * (W // P), P * P * C)


def unpatchify(patches: jax.Array, patch_size: int, channels: int, grid: sides.Size = 0) -> jax.Array:
    """Inverse of `patchify`: `(B, L, P*P*C)` -> `(B, H, W, C)`.

    grid: rows and columns of patches. 0: the image is square.
    """
    B, L, _ = patches.shape
    P, (rows, columns) = patch_size, sides.of(grid or round(L**0.5))
    x = patches.reshape(B, rows, columns, P, P, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, rows * P, columns * P, channels)


def num_kept(num_patches: int, mask_ratio: float) -> int:
    """Visible patches of `num_patches` at `mask_ratio`: 49 of 196 at 0.75."""
    return int(num_patches * (1 - mask_ratio))


def random_masking(noise: jax.Array, mask_ratio: float) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keep the patches with the smallest noise.

    noise: uniform draws `(B, L)`.
    mask_ratio: share of the patches that are masked.

    Returns ids_keep `(B, K)`, the indices of the visible patches; mask `(B, L)` float32, 0 for visible
    and 1 for masked patches; and ids_restore `(B, L)`, the rank of every patch in the shuffled
    sequence. Ranks below K are visible.
    """
    ids_shuffle = jnp.argsort(noise, axis=1)
    ids_restore = jnp.argsort(ids_shuffle, axis=1)
    keep = num_kept(noise.shape[1], mask_ratio)
    mask = (ids_restore >= keep).astype(jnp.float32)
    return ids_shuffle[:, :keep], mask, ids_restore


def spread(mask: jax.Array, grid: tuple[int, ...], times: int) -> jax.Array:
    """A mask of patches `(B, L)` for a map with `times` as many places along each side, `(B, H, W, 1)`.

    grid: rows and columns of patches.
    """
    rows, columns = grid
    apart = mask.reshape(-1, rows, 1, columns, 1)
    whole = jnp.broadcast_to(apart, (len(mask), rows, times, columns, times))
    return whole.reshape(-1, rows * times, columns * times, 1)


def take_patches(tokens: jax.Array, ids: jax.Array) -> jax.Array:
    """Pick `(B, K)` positions of `(B, L, D)` tokens."""
    return jnp.take_along_axis(tokens, ids[:, :, None], axis=1)


@jax.custom_vjp
def restore_patches(visible: jax.Array, fill: jax.Array, ids_keep: jax.Array, ids_restore: jax.Array) -> jax.Array:
    """Put `(B, K, D)` visible tokens back in place and `fill` `(D,)` everywhere else: `(B, L, D)`.

    The gradient of a gather is a scatter, which is slow on every device. Here the inverse of the
    permutation is known, so the gradient is a gather too.
    """
    K = visible.shape[1]
    hidden = (ids_restore >= K)[:, :, None]
    return jnp.where(hidden, fill, take_patches(visible, jnp.minimum(ids_restore, K - 1)))


def _restore_fwd(visible, fill, ids_keep, ids_restore):
    return restore_patches(visible, fill, ids_keep, ids_restore), (ids_keep, ids_restore)


def _restore_bwd(residuals, grad):
    ids_keep, ids_restore = residuals
    hidden = (ids_restore >= ids_keep.shape[1])[:, :, None]
    # Summed in float32: the fill is one vector for all hidden patches of the batch.
    grad_fill = jnp.sum(jnp.where(hidden, grad, 0).astype(jnp.float32), axis=(0, 1))
    return take_patches(grad, ids_keep), grad_fill.astype(grad.dtype), None, None


restore_patches.defvjp(_restore_fwd, _restore_bwd)
