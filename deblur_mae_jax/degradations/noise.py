"""Additive Gaussian noise, the degradation of the denoising MAE baseline."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from deblur_mae_jax.degradations.contract import Degradation


def _normal(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """Normal values. Those of an image `(H, W, C)` do not change with the canvas: each row has a key of its own."""
    if len(shape) != 3:
        return jax.random.normal(key, shape, dtype)
    rows = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(shape[0]))
    return jax.vmap(lambda row: jax.random.normal(row, shape[1:], dtype))(rows)


def gaussian_noise(std: float = 0.25, clip: bool = True, variance: float = 0.0) -> Degradation:
    """Add noise N(0, std^2) on the 0..1 gray scale.

    std: standard deviation. DeblurrMAE does not report the value of its denoising baseline; 0.25 is
        that of the denoising MAE of Wu et al. (2022).
    clip: clip the result to the gray scale. 2-D images that are degraded at their native size are always clipped.
        Volumes need clip=False: half of the values of standardised MR are below 0.
    variance: replaces `std` if it is not 0. Disruptive Autoencoders use 0.1 without clipping.
    """
    if not std > 0 or variance < 0:
        raise ValueError(f"std={std} must be greater than 0, and variance={variance} not negative")
    std = variance**0.5 or std

    def apply(image, params, size):
        noisy = image + 255.0 * std * _normal(params["key"], image.shape, image.dtype)
        return jnp.clip(noisy, 0.0, 255.0) if clip else noisy

    axes = (2,) if clip else (2, 3)
    return Degradation(lambda key: {"key": key}, apply, random=True, keeps_constant=False, ndim=axes)
