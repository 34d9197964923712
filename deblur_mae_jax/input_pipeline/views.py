"""Random views for contrastive learning, per example, inside the jitted step: jitter, gray, blur, solarise.

The operations and their order are those of SimCLR (Chen et al. 2020, appendix A) and MoCo v3 (Chen et al. 2021): colour
jitter in random order, conversion to gray, Gaussian blur, solarisation. They follow a random resized crop and a flip,
and precede the normalisation. Images are gray levels 0..255, float32, `(H, W, C)` with one channel or three. With one
channel there is no saturation, hue or conversion to gray.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline import crop_resize
from deblur_mae_jax.sides import Size

SOLARISE_FROM = 128.0
# The blur reads pixels up to this many sigmas away.
REACH = 4.0


@dataclasses.dataclass(frozen=True)
class View:
    """Draws one view: `view(key, image) -> image`.

    brightness: largest relative change of the brightness.
    contrast: largest relative change of the distance to the mean gray level.
    saturation: largest relative change of the distance to gray.
    hue: largest shift of the hue, as a share of the colour circle.
    jitter_probability: probability of these four, which are applied in random order.
    gray_probability: probability that the colours are removed.
    blur_probability: probability of the blur.
    blur_sigma: range of the sigma of the blur, pixels of the view.
    solarise_probability: probability that pixels of 128 and more are inverted.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    jitter_probability: float = 0.8
    gray_probability: float = 0.2
    blur_probability: float = 1.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise_probability: float = 0.0

    def __call__(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """A view of `image` `(H, W, C)`."""
        k_jitter, k_gray, k_blur, k_sigma, k_solarise, k_apply = jax.random.split(key, 6)
        jittered = self._jitter(k_jitter, image)
        image = jnp.where(jax.random.bernoulli(k_apply, self.jitter_probability), jittered, image)
        if image.shape[2] == 3:
            gray = jnp.broadcast_to(luminance(image), image.shape)
            image = jnp.where(jax.random.bernoulli(k_gray, self.gray_probability), gray, image)
        if self.blur_probability > 0:
            sigma = jax.random.uniform(k_sigma, minval=self.blur_sigma[0], maxval=self.blur_sigma[1])
            wanted = jax.random.bernoulli(k_blur, self.blur_probability)
            image = jnp.where(wanted, blur(image, sigma, self.blur_sigma[1]), image)
        if self.solarise_probability > 0:
            wanted = jax.random.bernoulli(k_solarise, self.solarise_probability)
            image = jnp.where(wanted & (image >= SOLARISE_FROM), 255.0 - image, image)
        return image

    def _jitter(self, key: jax.Array, image: jax.Array) -> jax.Array:
        """Brightness, contrast, saturation and hue, in random order."""
        k_order, k_factor = jax.random.split(key)
        largest = [self.brightness, self.contrast]
        operations: list[Callable[[jax.Array, jax.Array], jax.Array]] = [change_brightness, change_contrast]
        if image.shape[2] == 3:
            largest += [self.saturation, self.hue]
            operations += [change_saturation, shift_hue]
        draws = jax.random.uniform(k_factor, (len(largest),), minval=-1.0, maxval=1.0)
        order = jax.random.permutation(k_order, len(operations))
        for place in range(len(operations)):
            changed = [
                operation(image, draw * most + (0.0 if operation is shift_hue else 1.0))
                for operation, draw, most in zip(operations, draws, largest, strict=True)
            ]
            image = jnp.select([order[place] == number for number in range(len(changed))], changed)
        return image


def luminance(image: jax.Array) -> jax.Array:
    """The gray levels `(H, W, 1)` of `(H, W, 3)` colours, by ITU-R 601."""
    weights = jnp.asarray((0.299, 0.587, 0.114), image.dtype)
    return (image * weights).sum(axis=-1, keepdims=True)


def _blend(image: jax.Array, other: jax.Array | float, factor: jax.Array) -> jax.Array:
    return jnp.clip(factor * image + (1.0 - factor) * other, 0.0, 255.0)


def change_brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply by `factor`; 0 is black."""
    return _blend(image, 0.0, factor)


def change_contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply the distance to the mean gray level by `factor`; 0 is gray everywhere."""
    gray = luminance(image) if image.shape[2] == 3 else image
    return _blend(image, gray.mean(), factor)


def change_saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiply the distance to gray by `factor`; 0 removes the colours."""
    return _blend(image, luminance(image), factor)


def shift_hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Turn the colour circle by `shift`, from -0.5 to 0.5."""
    high, low = image.max(axis=2), image.min(axis=2)
    spread = high - low
    safe = jnp.where(spread > 0, spread, 1.0)
    red, green, blue = (((high - image[..., i]) / safe) for i in range(3))
    is_red, is_green = image[..., 0] == high, image[..., 1] == high
    sixth = jnp.where(is_red, blue - green, jnp.where(is_green, 2.0 + red - blue, 4.0 + green - red))
    hue = jnp.where(spread > 0, sixth / 6.0, 0.0)
    turned = ((hue + shift) % 1.0)[..., None]
    # Red, green and blue of a pure colour, which is mixed with gray by the saturation.
    offsets = jnp.asarray((1.0, 2.0 / 3.0, 1.0 / 3.0), image.dtype)
    pure = jnp.clip(jnp.abs(((turned + offsets) % 1.0) * 6.0 - 3.0) - 1.0, 0.0, 1.0)
    return low[..., None] + spread[..., None] * pure


def blur(image: jax.Array, sigma: jax.Array, largest: float) -> jax.Array:
    """A Gaussian blur; the pixels of the border continue beyond it.

    sigma: of the Gaussian, pixels.
    largest: the largest sigma that can occur, pixels.
    """
    reach = max(1, round(REACH * largest))
    rows, cols = (_blurring(size, sigma, reach) for size in image.shape[:2])
    return crop_resize.render(image, rows, cols)


def _blurring(size: int, sigma: jax.Array, reach: int) -> jax.Array:
    """The matrix of the blur along an axis `(size, size)`; it reads `reach` pixels on each side."""
    positions = jnp.arange(-reach, size + reach)
    distance = (jnp.arange(size)[:, None] - positions[None]).astype(jnp.float32)
    weights = jnp.where(jnp.abs(distance) <= reach, jnp.exp(-0.5 * jnp.square(distance / sigma)), 0.0)
    weights = weights / weights.sum(axis=1, keepdims=True)
    inside = weights[:, reach:-reach]
    inside = inside.at[:, 0].add(weights[:, :reach].sum(axis=1))
    return inside.at[:, -1].add(weights[:, -reach:].sum(axis=1))


@dataclasses.dataclass(frozen=True)
class LocalCrops:
    """Small crops of every image (multi-crop, Caron et al. 2020).

    count: their number.
    size: their side, pixels.
    scale: range of their area, as a share of the image.
    view: what is drawn for each.
    """

    count: int
    size: int
    scale: tuple[float, float]
    view: View


def local_of(augment: ConfigDict, image_size: Size, patch_size: int) -> LocalCrops | None:
    """The small crops that `config.augment` describes, or None. Raises `UserError`."""
    count, size, scale = augment.local_crops, augment.local_size, tuple(augment.local_scale)
    if count < 0:
        raise UserError(f"config.augment.local_crops={count} must be 0 (none) or greater")
    if not count:
        return None
    if size < 1 or size % patch_size or size > min(sides.of(image_size)):
        raise UserError(
            f"config.augment.local_size={size} must be a multiple of config.model.patch_size={patch_size}, and at most "
            f"config.image_size={image_size}"
        )
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise UserError(f"config.augment.local_scale={scale} must be a range in (0, 1]")
    view = dataclasses.replace(from_config(augment)[0], blur_probability=0.5, solarise_probability=0.0)
    return LocalCrops(count, size, scale, view)


def from_config(augment: ConfigDict) -> tuple[View, View]:
    """The two views that `config.augment` describes. Raises `UserError`."""
    probabilities = {
        "jitter_probability": (augment.jitter_probability, augment.jitter_probability),
        "gray_probability": (augment.gray_probability, augment.gray_probability),
        "blur_probability": tuple(augment.view_blur_probability),
        "solarise_probability": tuple(augment.solarize_probability),
    }
    for name, values in probabilities.items():
        if len(values) != 2 or not all(0 <= value <= 1 for value in values):
            raise UserError(f"config.augment: {name} {values} must be probabilities from 0 to 1, one for each view")
    jitter, sigma = tuple(augment.jitter), tuple(augment.view_blur_sigma)
    if len(jitter) != 4 or not all(value >= 0 for value in jitter) or jitter[3] > 0.5:
        raise UserError(
            f"config.augment.jitter={jitter} must be four numbers of 0 or more: brightness, contrast, saturation, and "
            "hue up to 0.5"
        )
    if len(sigma) != 2 or not 0 < sigma[0] <= sigma[1]:
        raise UserError(f"config.augment.view_blur_sigma={sigma} must be a range above 0, pixels")
    return tuple(  # type: ignore[return-value]
        View(*jitter, blur_sigma=sigma, **{name: values[number] for name, values in probabilities.items()})
        for number in range(2)
    )
