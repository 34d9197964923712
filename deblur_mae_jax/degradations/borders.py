"""Extend an image beyond its edge before a filter. The image may occupy part of a padded canvas."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from deblur_mae_jax.degradations.contract import Size

BORDERS = ("reflect_101", "reflect", "replicate", "wrap")


def border_index(index: jax.Array, extent: jax.Array | int, border: str) -> jax.Array:
    """Map every index outside 0..extent-1 to the index of the pixel that replaces it.

    Choices of `border`:
    reflect_101: `dcb|abcd|cba` (OpenCV's default, numpy "reflect").
    reflect: `cba|abcd|dcb` (numpy "symmetric").
    replicate: `aaa|abcd|ddd`.
    wrap: `bcd|abcd|abc`.
    """
    if border == "replicate":
        return jnp.clip(index, 0, extent - 1)
    if border == "wrap":
        return index % extent
    if border == "reflect":
        index = index % (2 * extent)
        return jnp.where(index >= extent, 2 * extent - 1 - index, index)
    if border == "reflect_101":
        period = jnp.maximum(2 * (extent - 1), 1)
        index = index % period
        return jnp.where(index >= extent, period - index, index)
    raise ValueError(f"border: unknown name '{border}'. Choices: {', '.join(BORDERS)}.")


def pad(image: jax.Array, radius: int, border: str, size: Size = None) -> jax.Array:
    """Extend every spatial axis of `(*space, C)` by `radius` on both sides.

    With `size`, the true image occupies `[0, size)` of each axis and the border rule is applied
    there, not at the edge of the canvas.
    """
    for axis in range(image.ndim - 1):
        canvas = image.shape[axis]
        extent = canvas if size is None else size[axis]
        index = border_index(jnp.arange(-radius, canvas + radius), extent, border)
        image = jnp.take(image, index, axis=axis)
    return image


def extend(image: jax.Array, border: str, size: Size) -> jax.Array:
    """Fill the canvas beyond the true image according to the border rule."""
    return image if size is None else pad(image, 0, border, size)
