"""Speckle-reducing anisotropic diffusion (SRAD), the edge-preserving blur of DeblurrMAE eq. 3."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from deblur_mae_jax.degradations import borders
from deblur_mae_jax.degradations.contract import Degradation, Size, fixed

Q0_RULES = ("decay", "image", "roi")
COEFFICIENTS = ("rational", "exponential")


def _before(x: jax.Array, axis: int) -> jax.Array:
    """The value one pixel before, the border replicated. Slices, because a gather is slower on a CPU."""
    n = x.shape[axis]
    parts = jax.lax.slice_in_dim(x, 0, 1, axis=axis), jax.lax.slice_in_dim(x, 0, n - 1, axis=axis)
    return jnp.concatenate(parts, axis)


def _after(x: jax.Array, axis: int) -> jax.Array:
    """The value one pixel after, the border replicated."""
    n = x.shape[axis]
    parts = jax.lax.slice_in_dim(x, 1, n, axis=axis), jax.lax.slice_in_dim(x, n - 1, n, axis=axis)
    return jnp.concatenate(parts, axis)


def srad_step(
    state: jax.Array, q0: jax.Array, dt: float, coefficient: str, quarter: bool, eps: float, *, size: Size = None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One diffusion step of Yu & Acton (IEEE TIP 2002, eqs. 31-33, 47, 58-61) on `(..., H, W)`.

    Returns the next state, the diffusion coefficient c and the squared coefficient of variation q^2.
    size: height and width of the true image in the canvas, across whose edge nothing diffuses. What lies beyond it in
        the results has no meaning. None: all of the canvas.
    """
    north, west = _before(state, -2) - state, _before(state, -1) - state
    south, east = _after(state, -2) - state, _after(state, -1) - state
    if size is not None:  # a zero normal derivative at the true edge
        rows, columns = (jnp.arange(n) + 1 < extent for n, extent in zip(state.shape[-2:], size, strict=True))
        south, east = jnp.where(rows[:, None], south, 0.0), jnp.where(columns, east, 0.0)
    safe = jnp.maximum(state, eps)
    gradient2 = (north**2 + south**2 + west**2 + east**2) / safe**2
    laplacian = (north + south + west + east) / safe
    q2 = (gradient2 / 2 - laplacian**2 / 16) / (1 + laplacian / 4) ** 2
    excess = (q2 - q0**2) / (q0**2 * (1 + q0**2))
    c = jnp.exp(-excess) if coefficient == "exponential" else 1 / (1 + excess)
    c = jnp.clip(c, 0.0, 1.0)
    divergence = c * north + _after(c, -2) * south + c * west + _after(c, -1) * east
    rate = dt / 4 if quarter else dt
    return state + rate * divergence, c, q2


def _check(iterations: int, dt: float, quarter: bool, q0: str, coefficient: str, roi: Any) -> None:
    """Raise `ValueError` for invalid arguments of `srad`."""
    if iterations < 1:
        raise ValueError(f"iterations={iterations} must be at least 1")
    if not 0 < dt <= 1:
        raise ValueError(f"dt={dt} must be in (0, 1]: larger steps are unstable")
    if not quarter and dt > 0.25:
        raise ValueError(f"dt={dt} must be in (0, 0.25] with quarter=False: larger steps are unstable")
    if q0 not in Q0_RULES:
        raise ValueError(f"q0: unknown name '{q0}'. Choices: {', '.join(Q0_RULES)}.")
    if coefficient not in COEFFICIENTS:
        choices = ", ".join(COEFFICIENTS)
        raise ValueError(f"coefficient: unknown name '{coefficient}'. Choices: {choices}.")
    if (q0 == "roi") != (roi is not None):
        raise ValueError("roi=(top, left, height, width) goes with q0='roi', and only with it")
    if roi is not None and (len(roi) != 4 or min(roi[:2]) < 0 or min(roi[2:]) < 1):
        raise ValueError(f"roi={roi} must be (top, left, height, width), with a height and width of at least 1 pixel")


def _region(shape: tuple[int, int], size: Size | None, roi: tuple[int, int, int, int] | None) -> jax.Array:
    """1 where the speckle scale is estimated `(H, W)`: inside the image, and inside `roi` if they overlap."""
    inside = jnp.ones(shape)
    if size is not None:
        rows, cols = jnp.arange(shape[0]), jnp.arange(shape[1])
        inside = (rows < size[0])[:, None] & (cols < size[1])[None]
    region = inside.astype(jnp.float32)
    if roi is not None:
        top, left, height, width = roi
        within = region * jnp.zeros(shape).at[top : top + height, left : left + width].set(1.0)
        region = jnp.where(within.any(), within, region)
    return region


def srad(
    iterations: int = 40,
    dt: float = 0.1,
    *,
    q0: str = "decay",
    rho: float = 1 / 6,
    coefficient: str = "rational",
    roi: tuple[int, int, int, int] | None = None,
    quarter: bool = True,
    eps: float = 1e-8,
) -> Degradation:
    """SRAD(x, N=iterations, t=dt); the paper uses SRAD(40, 0.1).

    q0: rule for the speckle scale. "decay": q0(k) = exp(-rho * k * dt), on linear gray levels plus one.
        "image": std / mean of the whole image, estimated anew at every step, on the exponential of the
        image scaled to 0..1 (this undoes the log compression of B-mode). "roi": the same within `roi`, or within
        the whole image if `roi` lies outside of it.
    rho: decay rate for q0="decay".
    coefficient: "rational", 1 / (1 + ...), or "exponential"; both from Yu & Acton, clipped to 0..1.
    roi: (top, left, height, width) in pixels, for q0="roi".
    quarter: keep the factor 1/4 of the published scheme, which the DeblurrMAE paper does not show.
    """
    _check(iterations, dt, quarter, q0, coefficient, roi)

    def apply(image, size):
        if image.ndim != 3:
            raise ValueError(f"SRAD needs an (H, W, C) image, got shape {image.shape}")
        region = _region(image.shape[:2], size, roi)
        planes = jnp.moveaxis(image, -1, 0)  # with one channel last a CPU would not use its vector units
        state = planes + 1.0 if q0 == "decay" else jnp.exp(planes / 255.0)

        def step(state, k):
            if q0 == "decay":
                scale = jnp.exp(-rho * k * dt)
            else:
                count = region.sum((-2, -1), keepdims=True)
                average = (state * region).sum((-2, -1), keepdims=True) / count
                spread = (((state - average) ** 2) * region).sum((-2, -1), keepdims=True) / count
                scale = jnp.maximum(jnp.sqrt(spread) / average, 1e-6)
            return srad_step(state, scale, dt, coefficient, quarter, eps, size=size)[0], None

        state, _ = jax.lax.scan(step, state, jnp.arange(iterations, dtype=jnp.float32))
        result = jnp.moveaxis(state - 1.0 if q0 == "decay" else 255.0 * jnp.log(state), 0, -1)
        return jnp.clip(borders.extend(result, "replicate", size), 0.0, 255.0)

    return fixed(apply, ndim=(2,))
