"""Augmentation for fine-tuning, per example, inside the jitted step: RandAugment, random erasing.

The operations, their ranges and their probabilities are those of timm's `rand-m9-mstd0.5-inc1`, which
MAE's fine-tuning uses (He et al. 2022, table 9). The pixels equal Pillow's, up to rounding. Images are
whole gray levels 0..255, float32, `(H, W, C)` with one channel or three.

Fifteen operations on a batch would need fifteen branches per image. But nine of them are tables of 256
entries, five are affine maps, and the rest blend with a smoothed or gray copy. So each layer applies
one table, one blend and one resampling; those that were not drawn leave the image unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline import crop_resize

OPERATIONS = (
    "auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add",
    "color", "contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x",
    "translate_y",
)  # fmt: skip
MAX_MAGNITUDE = 10.0
PROBABILITY = 0.5


class Draw(NamedTuple):
    """One operation for one image: its index, its strength, its direction, and whether it is applied."""

    operation: jax.Array
    magnitude: jax.Array  # 0..10
    sign: jax.Array  # -1 or 1
    apply: jax.Array


def draw(key: jax.Array, magnitude: float, std: float) -> Draw:
    """Draw an operation as timm does: strength from a normal clipped to 0..10, applied with probability 0.5."""
    k_operation, k_magnitude, k_sign, k_apply = jax.random.split(key, 4)
    strength = magnitude + std * jax.random.normal(k_magnitude)
    return Draw(
        jax.random.randint(k_operation, (), 0, len(OPERATIONS)),
        jnp.clip(strength, 0.0, MAX_MAGNITUDE),
        jnp.where(jax.random.bernoulli(k_sign), 1.0, -1.0),
        jax.random.bernoulli(k_apply, PROBABILITY),
    )


def _table(image: jax.Array, is_operation: Callable[[str], jax.Array], d: Draw) -> jax.Array:
    """The table of 256 gray levels `(256, C)` of the operation, or the identity."""
    levels = jnp.arange(256, dtype=jnp.float32)
    share = d.magnitude / MAX_MAGNITUDE
    factor = jnp.maximum(0.1, 1.0 + 0.9 * share * d.sign)
    whole = image.astype(jnp.int32)
    histogram = jax.vmap(lambda values: jnp.zeros(256, jnp.int32).at[values].add(1), in_axes=1, out_axes=1)(
        whole.reshape(-1, image.shape[2])
    )

    def per_channel(function):
        return jax.vmap(function, in_axes=1, out_axes=1)(histogram)

    def auto_contrast(counts):
        low = jnp.argmax(counts > 0)
        high = 255 - jnp.argmax(counts[::-1] > 0)
        stretched = jnp.clip(jnp.floor((levels - low) * (255.0 / jnp.maximum(high - low, 1))), 0, 255)
        return jnp.where(high > low, stretched, levels)

    def equalize(counts):
        last = counts[255 - jnp.argmax(counts[::-1] > 0)]
        step = (counts.sum() - last) // 255
        before = jnp.cumsum(counts) - counts
        mapped = jnp.minimum((step // 2 + before) // jnp.maximum(step, 1), 255)
        return jnp.where((step > 0) & ((counts > 0).sum() > 1), mapped.astype(jnp.float32), levels)

    def everywhere(table):
        return jnp.broadcast_to(table[:, None], (256, image.shape[2]))

    # Pillow truncates where it blends.
    gray_mean = jnp.floor(jnp.rint(crop_resize.to_gray(image)).mean() + 0.5)
    bits = 4 - jnp.floor(share * 4)
    grain = 2.0 ** (8 - bits)
    tables = {
        "auto_contrast": per_channel(auto_contrast),
        "equalize": per_channel(equalize),
        "invert": everywhere(255.0 - levels),
        "posterize": everywhere(jnp.floor(levels / grain) * grain),
        "solarize": everywhere(jnp.where(levels < 256 - jnp.floor(share * 256), levels, 255.0 - levels)),
        "solarize_add": everywhere(
            jnp.where(
                levels < 128,
                jnp.minimum(levels + jnp.minimum(128, jnp.floor(share * 110)), 255),
                levels,
            )
        ),
        "contrast": everywhere(_blend(gray_mean, levels, factor)),
        "brightness": everywhere(_blend(jnp.zeros(()), levels, factor)),
    }
    table = everywhere(levels)
    for name, values in tables.items():
        table = jnp.where(is_operation(name), values, table)
    return table


def _blend(start: jax.Array, end: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's `ImageEnhance`: extrapolate from `start` to `end`, clip to 0..255 and truncate."""
    return jnp.floor(jnp.clip(start + factor * (end - start), 0.0, 255.0))


def _smooth(image: jax.Array) -> jax.Array:
    """Pillow's SMOOTH filter, `[1 1 1; 1 5 1; 1 1 1] / 13`. The outermost pixels are unchanged."""
    padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)))
    H, W = image.shape[:2]
    total = 4.0 * image
    for i in range(3):
        for j in range(3):
            total = total + padded[i : i + H, j : j + W]
    rows, cols = jnp.arange(H), jnp.arange(W)
    inside = ((rows > 0) & (rows < H - 1))[:, None] & ((cols > 0) & (cols < W - 1))[None]
    return jnp.where(inside[..., None], jnp.floor(total / 13.0 + 0.5), image)


def affine(image: jax.Array, matrix: jax.Array, fill: jax.Array) -> jax.Array:
    """Pillow's `Image.transform(AFFINE, BICUBIC)` with `fillcolor`.

    matrix: `(2, 3)`; output pixel (x, y) is read at `matrix @ (x + 1/2, y + 1/2, 1)`.
    fill: gray level outside the image.
    """
    height, width, channels = image.shape
    ys, xs = jnp.mgrid[:height, :width].astype(jnp.float32) + 0.5
    x = matrix[0, 0] * xs + matrix[0, 1] * ys + matrix[0, 2]
    y = matrix[1, 0] * xs + matrix[1, 1] * ys + matrix[1, 2]
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x - 0.5, y - 0.5
    x0, y0 = jnp.floor(x), jnp.floor(y)

    def weights(t):
        return [_keys_cubic(t + 1), _keys_cubic(t), _keys_cubic(1 - t), _keys_cubic(2 - t)]

    wx, wy = weights(x - x0), weights(y - y0)
    x0, y0 = x0.astype(jnp.int32), y0.astype(jnp.int32)
    flat = image.reshape(-1, channels)
    out = jnp.zeros_like(image)
    for i in range(4):
        row = jnp.clip(y0 + i - 1, 0, height - 1) * width
        line = jnp.zeros_like(image)
        for j in range(4):
            column = jnp.clip(x0 + j - 1, 0, width - 1)
            line = line + wx[j][..., None] * flat.at[row + column].get(mode="promise_in_bounds")
        out = out + wy[i][..., None] * line
    out = jnp.clip(jnp.floor(out + 1e-3), 0.0, 255.0)  # Pillow truncates
    return jnp.where(inside[..., None], out, fill)


def _keys_cubic(t: jax.Array) -> jax.Array:
    """The cubic of Pillow's `transform`, a = -1 (its `resize` has a = -1/2); t >= 0."""
    near = (t - 2) * t * t + 1
    far = ((-t + 5) * t - 8) * t + 4
    return jnp.where(t < 1, near, jnp.where(t < 2, far, 0.0))


def _matrix(height: int, width: int, is_operation: Callable[[str], jax.Array], d: Draw) -> jax.Array:
    share = d.magnitude / MAX_MAGNITUDE * d.sign
    angle = jnp.where(is_operation("rotate"), jnp.deg2rad(30.0 * share), 0.0)
    shear_x = jnp.where(is_operation("shear_x"), 0.3 * share, 0.0)
    shear_y = jnp.where(is_operation("shear_y"), 0.3 * share, 0.0)
    move_x = jnp.where(is_operation("translate_x"), 0.45 * share * width, 0.0)
    move_y = jnp.where(is_operation("translate_y"), 0.45 * share * height, 0.0)
    cos, sin, x, y = jnp.cos(angle), jnp.sin(angle), width / 2, height / 2
    return jnp.array(
        [
            [cos, -sin + shear_x, x - cos * x + sin * y + move_x],
            [sin + shear_y, cos, y - sin * x - cos * y + move_y],
        ]
    )


def operate(image: jax.Array, d: Draw, fill: jax.Array) -> jax.Array:
    """One operation on one image of whole gray levels `(H, W, C)`."""

    def is_operation(name: str) -> jax.Array:
        return d.apply & (d.operation == OPERATIONS.index(name))

    table = _table(image, is_operation, d)
    channels = jnp.arange(image.shape[2])
    mapped = table[image.astype(jnp.int32), channels]
    factor = jnp.maximum(0.1, 1.0 + 0.9 * d.magnitude / MAX_MAGNITUDE * d.sign)
    gray = jnp.rint(crop_resize.to_gray(mapped))
    mapped = jnp.where(is_operation("color"), _blend(gray, mapped, factor), mapped)
    smooth = _smooth(mapped)
    mapped = jnp.where(is_operation("sharpness"), _blend(smooth, mapped, factor), mapped)
    moved = affine(mapped, _matrix(image.shape[0], image.shape[1], is_operation, d), fill)
    geometric = jnp.stack([is_operation(n) for n in OPERATIONS if n.startswith(("rotate", "shear", "translate"))]).any()
    return jnp.where(geometric, moved, mapped)


class RandAugment(NamedTuple):
    """Apply `num_layers` random operations in sequence.

    magnitude: mean strength of an operation, 0 to 10.
    std: standard deviation of the strength.
    fill: gray level per channel outside the image (timm: the mean of the normalisation).
    """

    magnitude: float = 9.0
    std: float = 0.5
    num_layers: int = 2
    fill: tuple[float, ...] = (114.0,)

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Augment one image of gray levels `(H, W, C)`; it is rounded first."""
        image = jnp.clip(jnp.rint(image), 0.0, 255.0)
        fill = jnp.broadcast_to(jnp.asarray(self.fill, jnp.float32), image.shape[2:])

        def layer(image, key):
            return operate(image, draw(key, self.magnitude, self.std), fill), None

        return jax.lax.scan(layer, image, jax.random.split(key, self.num_layers))[0]


def rand_augment(spec: str, mean: tuple[float, ...]) -> RandAugment | None:
    """Parse timm's notation, such as "rand-m9-mstd0.5-inc1" (`inc1` always holds here). "" gives `None`."""
    if not spec:
        return None
    match = re.fullmatch(r"rand(?:-m([\d.]+)|-mstd([\d.]+)|-n(\d+)|-inc1)*", spec)
    if not match:
        raise UserError(
            f"config.augment.rand_augment='{spec}' cannot be read. Choices: '' (none), or as in "
            "'rand-m9-mstd0.5-inc1' (-n for the number of operations)"
        )
    magnitude, std, layers = (
        float(matches[-1]) if (matches := re.findall(rf"-{name}([\d.]+)", spec)) else default
        for name, default in (("m", 10.0), ("mstd", 0.0), ("n", 2))
    )
    if not 0 <= magnitude <= MAX_MAGNITUDE:
        raise UserError(f"config.augment.rand_augment='{spec}': the magnitude must be 0 to 10")
    return RandAugment(magnitude, std, int(layers), tuple(round(255 * m) for m in mean))


class RandomErasing(NamedTuple):
    """timm's random erasing in mode "pixel": replace one rectangle of the normalised image by normal noise.

    probability: probability of erasing.
    area: range of the rectangle's area, as a share of the image.
    aspect: range of its height / width.
    tries: draws of a rectangle; the first that fits is used.
    """

    probability: float = 0.25
    area: tuple[float, float] = (0.02, 1 / 3)
    aspect: tuple[float, float] = (0.3, 1 / 0.3)
    tries: int = 10

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """`(H, W, C)`, perhaps with a rectangle of noise."""
        height, width = image.shape[:2]
        k_apply, k_area, k_aspect, k_place, k_noise = jax.random.split(key, 5)
        shape = (self.tries,)
        share = jax.random.uniform(k_area, shape, minval=self.area[0], maxval=self.area[1])
        area = share * (height * width)
        low, high = jnp.log(jnp.asarray(self.aspect))
        aspect = jnp.exp(jax.random.uniform(k_aspect, shape, minval=low, maxval=high))
        h, w = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
        fits = (h < height) & (w < width)
        first = jnp.argmax(fits)
        h, w = h[first], w[first]
        corner = jax.random.uniform(k_place, (2,))
        top, left = jnp.floor(corner[0] * (height - h + 1)), jnp.floor(corner[1] * (width - w + 1))
        rows, cols = jnp.arange(height), jnp.arange(width)
        inside = ((rows >= top) & (rows < top + h))[:, None] & ((cols >= left) & (cols < left + w))
        erase = fits.any() & jax.random.bernoulli(k_apply, self.probability)
        noise = jax.random.normal(k_noise, image.shape)
        return jnp.where((inside & erase)[..., None], noise, image)


class Intensity(NamedTuple):
    """MONAI's random scaling and shift of the intensities of an image `(*space, C)`, drawn independently.

    scale: largest relative change.
    shift: largest shift.
    probability: probability of each of the two.
    """

    scale: float = 0.1
    shift: float = 0.1
    probability: float = 0.1

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """The image, perhaps brighter, darker, of more or less contrast."""
        k_apply, k_value = jax.random.split(key)
        applied = jax.random.bernoulli(k_apply, self.probability, (2,))
        drawn = jax.random.uniform(k_value, (2,), minval=-1.0, maxval=1.0) * applied
        return image * (1 + self.scale * drawn[0]) + self.shift * drawn[1]


def intensity_of(augmentation: ConfigDict) -> Any:
    """Build `Intensity` from the fields `intensity_*` of `config.augment`."""
    return Intensity(
        augmentation.intensity_scale,
        augmentation.intensity_shift,
        augmentation.intensity_probability,
    )
