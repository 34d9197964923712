"""Blurs: Gaussian (fixed, from a range, or with D2MAE's levels), mean, median, motion, defocus.

Kernels, borders and sizes are those of OpenCV and albumentations, which the DeblurrMAE code calls
(MICCAI 2023, Table 2). Each is tested against arrays that these libraries produced.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax.degradations import borders
from deblur_mae_jax.degradations.contract import Degradation, Size, fixed

KERNELS = ("opencv_uint8", "opencv_float", "scipy")
_MOST_IN_A_NETWORK = 81  # a median of more values is a sort: its network would take long to compile


def _check_kernel(kernel: str) -> None:
    if kernel not in KERNELS:
        raise ValueError(f"kernel: unknown name '{kernel}'. Choices: {', '.join(KERNELS)}.")


def gaussian_radius(sigma: float, kernel: str = "opencv_uint8") -> int:
    """Half-width of the Gaussian kernel that OpenCV (8-bit or float image) or SciPy would use."""
    _check_kernel(kernel)
    if kernel == "scipy":
        return int(4 * sigma + 0.5)
    return (round((6 if kernel == "opencv_uint8" else 8) * sigma + 1) | 1) // 2


def gaussian_taps(sigma: Any, radius: int, kernel: str = "opencv_uint8") -> Any:
    """Normalised Gaussian kernel `(2 * radius + 1,)` for a concrete or a traced `sigma`.

    `radius` is the static array size; taps beyond the half-width belonging to `sigma` are zero.
    `opencv_uint8` reproduces OpenCV's fixed-point kernel: 8 fractional bits, the rounding error
    carried from the edge inward, the centre taking up the rest. Its taps for sigma 0.1 and 0.2 are
    exactly (0, 1, 0). Computed in float64 with NumPy when `sigma` is concrete.
    """
    _check_kernel(kernel)
    concrete = isinstance(sigma, (int, float, np.ndarray, np.generic))
    xp = np if concrete else jnp
    sigma = xp.asarray(sigma, np.float64 if concrete else jnp.float32)
    if kernel == "scipy":
        half = xp.floor(4 * sigma + 0.5)
    else:
        size = xp.round((6 if kernel == "opencv_uint8" else 8) * sigma + 1)
        half = xp.floor((size + (size % 2 == 0)) / 2)
    x = xp.arange(-radius, radius + 1)
    weights = xp.where(xp.abs(x) <= half, xp.exp(-0.5 * (x / sigma) ** 2), 0.0)
    weights = weights / weights.sum()
    if kernel == "opencv_uint8":
        error = xp.zeros_like(sigma)
        side = []
        for i in range(radius):
            exact = 256 * weights[i] + error
            tap = xp.where(radius - i <= half, xp.round(exact), 0.0)
            error = exact - tap
            side.append(tap)
        if side:
            edge = xp.stack(side)
            centre = xp.reshape(256 - 2 * edge.sum(), (1,))
            weights = xp.concatenate([edge, centre, edge[::-1]]) / 256
        else:
            weights = xp.ones_like(weights)
    return weights.astype(np.float32)


def correlate_axis(padded: jax.Array, taps: jax.Array, axis: int) -> jax.Array:
    """Correlate one axis with `taps` `(K,)`; the axis shrinks by K - 1."""
    num = taps.shape[0]
    length = padded.shape[axis] - num + 1
    slices = (jax.lax.slice_in_dim(padded, k, k + length, axis=axis) for k in range(num))
    return sum((taps[k] * shifted for k, shifted in enumerate(slices)), start=jnp.zeros((), padded.dtype))


def separable(image: jax.Array, taps: jax.Array, border: str, size: Size = None) -> jax.Array:
    """Correlate every spatial axis of `(*space, C)` with the same kernel."""
    # With one channel last a CPU would not use its vector units.
    padded = jnp.moveaxis(borders.pad(image, (taps.shape[0] - 1) // 2, border, size), -1, 0)
    for axis in reversed(range(1, image.ndim)):
        padded = correlate_axis(padded, taps, axis)
    return jnp.moveaxis(padded, 0, -1)


def correlate(image: jax.Array, kernel: jax.Array | np.ndarray, border: str, size: Size = None) -> jax.Array:
    """Correlate an `(H, W, C)` image with an odd square 2-D kernel (OpenCV's filter2D)."""
    if image.ndim != 3:
        raise ValueError(f"a 2-D kernel needs an (H, W, C) image, got shape {image.shape}")
    side = kernel.shape[0]
    # A sum of shifted images; a convolution of one channel is several times slower on a CPU.
    padded = jnp.moveaxis(borders.pad(image, side // 2, border, size), -1, 0)
    out = jnp.zeros((), image.dtype)
    for row, column in np.ndindex(side, side):
        if isinstance(kernel, np.ndarray) and not kernel[row, column]:
            continue
        out += kernel[row, column] * padded[:, row : row + image.shape[0], column : column + image.shape[1]]
    return jnp.moveaxis(out, 0, -1)


def gaussian_blur(
    image: jax.Array,
    sigma: Any,
    *,
    max_sigma: float | None = None,
    kernel: str = "opencv_float",
    border: str = "reflect_101",
    size: Size = None,
) -> jax.Array:
    """Gaussian blur of `(*space, C)`, 2-D or 3-D, with a concrete or traced `sigma` in pixels.

    A traced `sigma` needs `max_sigma`, which fixes the kernel's array size.
    """
    if isinstance(sigma, int | float):
        _check_positive(sigma=sigma)
    bound = max_sigma if max_sigma is not None else float(sigma)
    taps = gaussian_taps(sigma, gaussian_radius(bound, kernel), kernel)
    return separable(image, jnp.asarray(taps), border, size)


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name}={value} must be greater than 0")


def _gaussian(taps, draw, border, **kwargs):
    def apply(image, params, size):
        return separable(image, taps(params), border, size)

    return Degradation(draw, apply, taps=taps if border == "reflect_101" else None, **kwargs)


def gaussian(
    sigma: float | tuple[float, float] = 1.1,
    kernel: str = "opencv_uint8",
    border: str = "reflect_101",
) -> Degradation:
    """Gaussian blur with one `sigma` (DeblurrMAE eq. 2), or one drawn from a range per example."""
    if isinstance(sigma, tuple):
        low, high = sigma
        _check_positive(sigma=low)
        if high < low:
            raise ValueError(f"sigma={sigma} must be (low, high) with low <= high")
        radius = gaussian_radius(high, kernel)

        def draw(key):
            return {"sigma": jax.random.uniform(key, (), minval=low, maxval=high)}

        return _gaussian(lambda params: gaussian_taps(params["sigma"], radius, kernel), draw, border, random=True)
    _check_positive(sigma=sigma)
    table = gaussian_taps(float(sigma), gaussian_radius(sigma, kernel), kernel)
    return _gaussian(lambda params: jnp.asarray(table), lambda key: {"sigma": jnp.float32(sigma)}, border)


def gaussian_levels(
    max_sigma: float = 1.1,
    step: float = 0.1,
    kernel: str = "opencv_uint8",
    border: str = "reflect_101",
    min_sigma: float | None = None,
) -> Degradation:
    """D2MAE's dynamic blur: level t is uniform on 1..T, sigma_t = step * t, T = max_sigma / step.

    max_sigma: largest sigma, pixels; 0.6, 1.1 (default) and 1.6 in the paper. If no level has it, the last level is the
        nearest one: 1.2 for 1.1 in steps of 0.3.
    step: difference in sigma between two levels, pixels.
    min_sigma: sigma of level 1, pixels; None: `step`, as in the paper. With 0 level 1 is the image as it is.
    kernel: as in `gaussian_taps`. With "opencv_uint8", levels 1 and 2 (sigma 0.1, 0.2) do not change the image.
    border: as in `borders`.
    """
    _check_positive(step=step)
    least = step if min_sigma is None else min_sigma
    if min_sigma is not None and min_sigma < 0:
        raise ValueError(f"min_sigma={min_sigma} must be 0 or greater")
    if max_sigma < least:
        name = "step" if min_sigma is None else "min_sigma"
        raise ValueError(f"max_sigma={max_sigma} must be at least {name}={least}")
    num_levels = round((max_sigma - least) / step) + 1
    sigmas = [step * (t + 1) if min_sigma is None else least + step * t for t in range(num_levels)]
    radius = gaussian_radius(sigmas[-1], kernel)
    sharp = (np.arange(2 * radius + 1) == radius).astype(np.float32)
    table = np.stack([gaussian_taps(sigma, radius, kernel) if sigma else sharp for sigma in sigmas])

    def at_level(level):
        if min_sigma is None:
            return {"level": level, "sigma": level * np.float32(step)}
        return {"level": level, "sigma": np.float32(least) + (level - 1) * np.float32(step)}

    def draw(key):
        return at_level(jax.random.randint(key, (), 1, num_levels + 1))

    return _gaussian(
        lambda params: jnp.asarray(table)[params["level"] - 1],
        draw,
        border,
        random=True,
        num_levels=num_levels,
        at_level=at_level,
    )


def mean(size: int = 5) -> Degradation:
    """Box average over `size` pixels along every axis (OpenCV `blur`)."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size={size} must be an odd number of pixels")
    taps = np.full(size, 1 / size, np.float32)
    return _gaussian(lambda params: jnp.asarray(taps), lambda key: {}, "reflect_101")


@functools.lru_cache
def _middle_network(count: int) -> tuple[tuple[int, int], ...]:
    """The comparisons (i, j) that bring the middle of `count` values to its place: Batcher's odd-even merge sort
    (Knuth, The Art of Computer Programming 5.3.4), without those that the middle does not depend on.
    """
    pairs, p = [], 1
    while p < count:
        k = p
        while k:
            for j in range(k % p, count - k, 2 * k):
                for i in range(j, j + min(k, count - j - k)):
                    if i // (2 * p) == (i + k) // (2 * p):
                        pairs.append((i, i + k))
            k //= 2
        p *= 2
    needed, kept = {count // 2}, []
    for pair in reversed(pairs):
        if needed & set(pair):
            needed |= set(pair)
            kept.append(pair)
    return tuple(reversed(kept))


def _middle(values: list[jax.Array]) -> jax.Array:
    """The median of an odd number of arrays. Minima and maxima of whole arrays are faster than a sort of each pixel."""
    if len(values) > _MOST_IN_A_NETWORK:
        return jnp.sort(jnp.stack(values), axis=0)[len(values) // 2]
    for i, j in _middle_network(len(values)):
        values[i], values[j] = jnp.minimum(values[i], values[j]), jnp.maximum(values[i], values[j])
    return values[len(values) // 2]


def median(size: int = 5) -> Degradation:
    """Median over a `size`-pixel square (or cube), replicated border (OpenCV `medianBlur`)."""
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size={size} must be an odd number of pixels")

    def apply(image, true_size):
        space = image.ndim - 1
        padded = borders.pad(image, size // 2, "replicate", true_size)
        windows = [jnp.moveaxis(padded, -1, 0)]  # with one channel last a CPU would not use its vector units
        for axis in range(space):
            length = image.shape[axis]
            windows = [jax.lax.slice_in_dim(w, k, k + length, axis=axis + 1) for w in windows for k in range(size)]
        return jnp.moveaxis(_middle(windows), 0, -1)

    return fixed(apply)


def _line_mask(ends: jax.Array, side: int) -> jax.Array:
    """Rasterise the 1-pixel line between `ends` = (x1, y1, x2, y2) in a `(side, side)` mask.

    The major axis advances one pixel at a time and the minor coordinate is rounded (halves towards
    the second end), which is what OpenCV's 8-connected line draws in windows this small.
    """
    ends = jnp.where(ends[0] <= ends[2], ends, jnp.roll(ends, 2))  # drawn from left to right
    x1, y1, x2, y2 = ends
    dx, dy = x2 - x1, y2 - y1
    steps = jnp.maximum(jnp.abs(dx), jnp.abs(dy))
    k = jnp.arange(side)

    def minor(delta):
        # Integer arithmetic: round(k * |delta| / steps) with halves going down.
        magnitude = (2 * k * jnp.abs(delta) + steps - 1) // jnp.maximum(2 * steps, 1)
        return jnp.sign(delta) * magnitude

    col = x1 + minor(dx)
    row = y1 + minor(dy)
    on = (k <= steps).astype(jnp.float32)
    grid = jnp.arange(side)
    hit = (grid[None, :, None] == row[:, None, None]) & (grid[None, None, :] == col[:, None, None])
    return jnp.max(hit * on[:, None, None], axis=0)


def _draw_line(key: jax.Array, side: int) -> jax.Array:
    """Draw end points as albumentations does. If both share a column, their rows differ."""
    kx, ky, ka, kb = jax.random.split(key, 4)
    x = jax.random.randint(kx, (2,), 0, side)
    y = jax.random.randint(ky, (2,), 0, side)
    first = jax.random.randint(ka, (), 0, side)
    other = (first + 1 + jax.random.randint(kb, (), 0, side - 1)) % side
    y = jnp.where(x[0] == x[1], jnp.stack([first, other]), y)
    return jnp.stack([x[0], y[0], x[1], y[1]])


def motion(size: int = 5, angle: float | None = None, centered: bool = False) -> Degradation:
    """Motion blur along a straight line. By default each image has a random line, as in albumentations' MotionBlur.

    size: side of the kernel, and so the maximal length of the line, pixels.
    angle: use a fixed, centred line with this angle, degrees counter-clockwise from the row direction.
    centered: centre the random line, so that the blur shifts the image by at most half a pixel.
    """
    if size < 3 or size % 2 == 0:
        raise ValueError(f"size={size} must be an odd number of pixels, at least 3")

    def correlate_line(image, kernel, true_size):
        return correlate(image, kernel, "reflect_101", true_size)

    if angle is not None:
        theta = np.deg2rad(angle)
        half = size // 2
        # The larger component spans the whole kernel, so the line always has `size` pixels.
        unit = np.array([np.cos(theta), -np.sin(theta)])
        dx, dy = np.rint(half * unit / np.abs(unit).max()).astype(int)
        centre = _line_mask(jnp.array([half - dx, half - dy, half + dx, half + dy]), size)
        kernel = np.asarray(centre / centre.sum())
        return fixed(lambda image, s: correlate_line(image, kernel, s), ndim=(2,))

    def draw(key):
        ends = _draw_line(key, size)
        if centered:
            shift = jnp.array([ends[0] + ends[2], ends[1] + ends[3]]) // 2 - size // 2
            ends = jnp.clip(ends - jnp.tile(shift, 2), 0, size - 1)
        mask = _line_mask(ends, size)
        return {"kernel": mask / mask.sum()}

    return Degradation(draw, lambda image, p, s: correlate_line(image, p["kernel"], s), random=True, ndim=(2,))


def defocus(radius: int = 5) -> Degradation:
    """Average over a disc of `radius` pixels (albumentations' Defocus without its alias blur)."""
    _check_positive(radius=radius)
    if radius != int(radius):
        raise ValueError(f"radius={radius} must be a whole number of pixels")
    radius = int(radius)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = (x**2 + y**2 <= radius**2).astype(np.float32)
    kernel = disc / disc.sum()
    return fixed(lambda image, size: correlate(image, kernel, "reflect_101", size), ndim=(2,))
