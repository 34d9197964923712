"""Remove a band of spatial frequencies, the idea of USFM's frequency branch (Jiao et al. 2024)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from deblur_mae_jax.degradations.contract import Degradation


def _waves(columns: int, length: Any) -> tuple[jax.Array, jax.Array]:
    """The matrix of the discrete Fourier transform of an axis, zero beyond its true length; and each frequency.

    Frequencies are shares of the highest one, `(columns,)`. A matrix, unlike a fast transform, may have a length that
    is known only when it runs: images of different sizes share a canvas.
    """
    number = jnp.arange(columns)
    inside = number < length
    phase = (number[:, None] * number[None] % length).astype(jnp.float32) * (-2.0 * jnp.pi / length)
    wave = jnp.where(inside[:, None] & inside[None], jnp.exp(1j * phase), 0.0)
    return wave, jnp.minimum(number, length - number) * (2.0 / length)


def band_stop(low: float = 0.2, high: float = 0.5, drawn: bool = False, clip: bool = True) -> Degradation:
    """Set the frequencies whose distance from 0 is in `[low, high)` to zero.

    low: lower limit, as a share of the highest frequency along an axis.
    high: upper limit; with the same value as `low` nothing is removed. USFM does not state its limits.
    drawn: draw both limits of every image, uniformly between `low` and `high`.
    clip: clip the result to the gray scale. Volumes need clip=False: half of the values of standardised MR are below 0.
    """
    if not 0 < low <= high:
        raise ValueError(f"low={low} must be above 0 and at most high={high}")

    def draw(key):
        if not drawn:
            return {}
        return {"limits": jnp.sort(jax.random.uniform(key, (2,), minval=low, maxval=high))}

    def apply(image, params, size):
        first, last = params["limits"] if drawn else (low, high)
        axes, squares, whole = range(image.ndim - 1), jnp.zeros(()), image.astype(jnp.complex64)
        precise, waves = jax.lax.Precision.HIGHEST, []
        for axis in axes:
            length = image.shape[axis] if size is None else size[axis]
            wave, frequency = _waves(image.shape[axis], length)
            waves.append((wave, length))
            shape = [1] * image.ndim
            shape[axis] = -1
            squares = squares + jnp.square(frequency).reshape(shape)
            whole = jnp.moveaxis(jnp.tensordot(wave, whole, (1, axis), precision=precise), 0, axis)
        # What is subtracted is exactly 0 for an empty band.
        removed = jnp.where((squares >= first**2) & (squares < last**2), whole, 0.0)
        for axis, (wave, length) in zip(axes, waves, strict=True):
            back = jnp.conj(wave) / length
            removed = jnp.moveaxis(jnp.tensordot(back, removed, (1, axis), precision=precise), 0, axis)
        out = image - removed.real
        return (jnp.clip(out, 0.0, 255.0) if clip else out).astype(image.dtype)

    return Degradation(draw, apply, random=drawn, ndim=(2,) if clip else (2, 3))
