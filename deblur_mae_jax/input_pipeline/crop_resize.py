"""Crop and resize native-resolution images, inside the jitted step, with two small matrices per image.

A crop with an antialiased resize is linear and separable, and so is a Gaussian blur before it:
`resize(crop(G_h x G_w^T)) = (R_h G_h) x (R_w G_w)^T`. A blur at native resolution, with the border
rule at the true edge of the image, then only needs another pair of matrices.

An image occupies the top-left corner of a canvas `(Hc, Wc, C)`; `size` is its true (height, width).
Grey levels are float32 in 0..255.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from deblur_mae_jax.degradations import borders

# weight_at(positions (K,)) -> (out, K): weight of each native position in each output pixel.
WeightAt = Callable[[jax.Array], jax.Array]

CROP_TRIES = 10
# Up to this radius one mirror image per edge is enough for images of 17 pixels. (The smallest by default,
# `data.min_side`, has 16: there it leaves out a weight of at most 3e-5.)
ONE_MIRROR = 16


class Box(NamedTuple):
    """A crop of an image, in native pixels, and the range that its resize filter may read.

    A training crop is cut out before the resize, so its filter reads only the crop. The evaluation
    view is cut out after the resize, so its filter reads the whole image.
    """

    top: jax.Array
    left: jax.Array
    height: jax.Array
    width: jax.Array
    read: tuple[jax.Array, jax.Array, jax.Array, jax.Array]  # first row, last + 1, column likewise


def random_resized_crop(
    key: jax.Array,
    size: jax.Array,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    rejection: bool = True,
) -> Box:
    """torchvision's RandomResizedCrop: up to ten draws of area and aspect ratio, else a central crop.

    size: (height, width) of the image, pixels.
    scale: range of the area, as a share of the image.
    ratio: range of width / height.
    rejection: draw again if a crop does not fit. False: clip the first draw to the image (MAE's linear probe,
        after BYOL).
    """
    height, width = size[0].astype(jnp.float32), size[1].astype(jnp.float32)
    k_area, k_ratio, k_top, k_left = jax.random.split(key, 4)
    area = height * width * jax.random.uniform(k_area, (CROP_TRIES,), minval=scale[0], maxval=scale[1])
    low, high = jnp.log(jnp.asarray(ratio))
    aspect = jnp.exp(jax.random.uniform(k_ratio, (CROP_TRIES,), minval=low, maxval=high))
    w = jnp.round(jnp.sqrt(area * aspect))
    h = jnp.round(jnp.sqrt(area / aspect))
    if not rejection:
        w, h = jnp.clip(w, 1, width), jnp.clip(h, 1, height)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = jnp.argmax(fits)

    # Fallback: the largest centred crop whose aspect ratio is in the range.
    image_ratio = width / height
    w_centre = jnp.where(image_ratio > ratio[1], jnp.round(height * ratio[1]), width)
    h_centre = jnp.where(image_ratio < ratio[0], jnp.round(width / ratio[0]), height)
    any_fits = fits.any()
    w = jnp.where(any_fits, w[first], w_centre)
    h = jnp.where(any_fits, h[first], h_centre)

    top = jnp.floor(jax.random.uniform(k_top) * (height - h + 1))
    left = jnp.floor(jax.random.uniform(k_left) * (width - w + 1))
    top = jnp.where(any_fits, jnp.minimum(top, height - h), jnp.floor((height - h) / 2))
    left = jnp.where(any_fits, jnp.minimum(left, width - w), jnp.floor((width - w) / 2))
    return Box(top, left, h, w, (top, top + h, left, left + w))


def centre_crop(size: jax.Array, out: tuple[int, ...]) -> Box:
    """The evaluation view: resize the image, with its proportions, to cover `resized_to(out)`, and crop its centre.

    size: (height, width) of the image, pixels.
    out: (height, width) of the view, pixels.
    """
    (high, broad), (out_height, out_width) = resized_to(out), out
    height, width = size[0].astype(jnp.float32), size[1].astype(jnp.float32)
    # torchvision truncates the longer side and rounds the crop's corner, both in resized pixels.
    by_height = high * width >= broad * height
    tall = jnp.where(by_height, high, jnp.maximum(jnp.floor(broad * height / width), high))
    wide = jnp.where(by_height, jnp.maximum(jnp.floor(high * width / height), broad), broad)
    top, left = jnp.round((tall - out_height) / 2), jnp.round((wide - out_width) / 2)
    rows, cols = height / tall, width / wide  # native pixels per resized pixel
    zero = jnp.zeros(())
    return Box(top * rows, left * cols, out_height * rows, out_width * cols, (zero, height, zero, width))


def resized_to(out: tuple[int, ...]) -> tuple[int, ...]:
    """The height and width that a resized image must cover before its centre is cropped, pixels.

    The view's sides * 256 / 224, or these sides themselves if both are above 224 pixels, as in MAE's fine-tuning code.
    We round, MAE truncates: both give 256 pixels for 224, and 110 and 109 for 96.

    out: (height, width) of the view, pixels.
    """
    return out if min(out) > 224 else tuple(round(side * 256 / 224) for side in out)


def cubic(x: jax.Array) -> jax.Array:
    """Pillow's bicubic kernel, a = -1/2."""
    x = jnp.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0.0))


def resize_weights(
    out: int,
    canvas: int,
    start: jax.Array,
    length: jax.Array,
    inside: tuple[jax.Array, jax.Array],
    flip: jax.Array | bool = False,
) -> WeightAt:
    """Weights of Pillow's antialiased bicubic resize of `[start, start + length)` to `out` pixels.

    inside: (first, last); only positions in `[first, last)` are read. The weights of each output pixel sum to one.
    flip: reverse the order of the output pixels.

    The result can be evaluated at any integer position, as `blurred_weights` requires.
    """
    scale = length / out
    support = jnp.maximum(scale, 1.0)
    index = jnp.arange(out)
    index = jnp.where(flip, out - 1 - index, index)
    centre = start + (index + 0.5) * scale

    first, last = inside

    def raw(position):
        read = (position >= first) & (position < last)
        weight = cubic((position[None] + 0.5 - centre[:, None]) / support)
        return jnp.where(read[None], weight, 0.0)

    total = raw(jnp.arange(canvas)).sum(axis=1, keepdims=True)
    return lambda position: raw(position) / total


def blurred_weights(weight_at: WeightAt, taps: jax.Array, canvas: int, extent: jax.Array) -> jax.Array:
    """`R G`: the resize matrix R after a blur G with reflect-101 borders, `(out, canvas)`.

    A pixel j of an axis of length n is read at j and, near the edges, at its mirror images -j and
    2 (n - 1) - j. R is known at any position, so each term is one short correlation. A kernel that is wider than a
    small image reads further mirror images, which are added one by one.
    """
    radius = (taps.shape[0] - 1) // 2
    j = jnp.arange(canvas)
    around = jnp.arange(-radius, canvas + radius)

    def correlate(positions):
        # The barrier keeps the compiler from evaluating the cubic again for every tap.
        weights = jax.lax.optimization_barrier(weight_at(positions))
        return sum(
            (taps[k] * jax.lax.slice_in_dim(weights, k, k + canvas, axis=1) for k in range(taps.shape[0])),
            start=jnp.zeros(()),
        )

    if radius > ONE_MIRROR:
        beyond = jnp.arange(-2 * radius, canvas + 2 * radius)
        weights = weight_at(beyond)
        span = canvas + 2 * radius
        spread = sum(
            (taps[k] * jax.lax.slice_in_dim(weights, k, k + span, axis=1) for k in range(taps.shape[0])),
            start=jnp.zeros(()),
        )
        place = borders.border_index(around, extent, "reflect_101")
        return jax.ops.segment_sum(spread.T, place, canvas).T

    head = min(radius + 1, canvas)  # the mirror image -j matters for the first pixels only
    low = correlate(-around)[:, :head] * (j[:head] >= 1)
    rows = correlate(around) + jnp.where(j <= extent - 2, correlate(2 * (extent - 1) - around), 0.0)
    return jnp.where(j < extent, rows.at[:, :head].add(low), 0.0)


def matrices(
    box: Box,
    size: jax.Array,
    canvas: tuple[int, int],
    out: tuple[int, ...],
    flip: jax.Array | bool = False,
    taps: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Row and column matrices `(out[0], Hc)`, `(out[1], Wc)` of a crop, with a blur folded in if given."""
    top, bottom, left, right = box.read
    rows = resize_weights(out[0], canvas[0], box.top, box.height, (top, bottom))
    cols = resize_weights(out[1], canvas[1], box.left, box.width, (left, right), flip)
    if taps is None:
        return rows(jnp.arange(canvas[0])), cols(jnp.arange(canvas[1]))
    return (
        blurred_weights(rows, taps, canvas[0], size[0]),
        blurred_weights(cols, taps, canvas[1], size[1]),
    )


def render(image: jax.Array, rows: jax.Array, cols: jax.Array, blurred: bool = False) -> jax.Array:
    """`(Hc, Wc, C)` -> `(*out, C)` gray levels in 0..255.

    The columns come first and are clipped before the rows, as Pillow does for 8-bit images, so the
    bicubic kernel overshoots at hard edges in the same way. If a blur is folded into the matrices
    (`blurred`), these intermediate values are not yet blurred along the rows and must not be clipped.
    """
    wide = jnp.einsum("hwc,pw->hpc", image.astype(jnp.float32), cols)
    wide = wide if blurred else jnp.clip(wide, 0.0, 255.0)
    return jnp.clip(jnp.einsum("oh,hpc->opc", rows, wide), 0.0, 255.0)


def sample(mask: jax.Array, box: Box, size: jax.Array, out: tuple[int, ...], flip: jax.Array | bool) -> jax.Array:
    """A mask `(Hc, Wc)` in the view of `matrices`, `out` (height, width), by nearest neighbour."""
    down, across = jnp.arange(out[0]), jnp.arange(out[1])
    across = jnp.where(flip, out[1] - 1 - across, across)
    rows = jnp.floor(box.top + (down + 0.5) * (box.height / out[0])).astype(int)
    cols = jnp.floor(box.left + (across + 0.5) * (box.width / out[1])).astype(int)
    return mask[jnp.clip(rows, 0, size[0] - 1)][:, jnp.clip(cols, 0, size[1] - 1)]


def whole(size: jax.Array) -> Box:
    """The whole image as a crop. The resize gives it the proportions of the view."""
    height, width = size[0].astype(jnp.float32), size[1].astype(jnp.float32)
    zero = jnp.zeros(())
    return Box(zero, zero, height, width, (zero, height, zero, width))


def to_gray(image: jax.Array) -> jax.Array:
    """RGB gray levels -> one channel with OpenCV's weights, rounded to whole levels."""
    if image.shape[-1] == 1:
        return image
    weights = jnp.asarray([0.299, 0.587, 0.114])
    return jnp.floor((image * weights).sum(axis=-1, keepdims=True) + 0.5)


def normalise(image: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Grey levels 0..255 -> zero-mean, unit-variance network input."""
    return (image / 255.0 - mean) / std


def denormalise(image: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Network values -> gray levels 0..255 (not clipped)."""
    return (image * std + mean) * 255.0
