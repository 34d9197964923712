"""Reconstruction losses, in float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp

NORM_PIX_EPS = 1e-6


def patch_statistics(patches: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation `(B, L, 1)` of each patch, as MAE's norm_pix_loss uses them.

    The variance is the unbiased one, and 1e-6 is added to it before the root.
    """
    average = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return average, jnp.sqrt(variance + NORM_PIX_EPS)


def normalise_patches(patches: jax.Array) -> jax.Array:
    """Each patch to zero mean and unit variance."""
    average, std = patch_statistics(patches)
    return (patches - average) / std


def patch_mse(pred: jax.Array, target: jax.Array, weight: jax.Array | None = None) -> jax.Array:
    """Mean squared error of `(B, L, P*P*C)` patches, one number per image `(B,)`.

    weight `(B, L)`: 1 for the patches that count (MAE's mask); `None` counts all of them
    (DeblurrMAE eq. 4, D2MAE eq. 3). With equally many masked patches in every image the mean over
    the batch is the mean over all of them.
    """
    error = jnp.square(pred.astype(jnp.float32) - target.astype(jnp.float32)).mean(axis=-1)
    if weight is None:
        return error.mean(axis=1)
    return (error * weight).sum(axis=1) / weight.sum(axis=1)
