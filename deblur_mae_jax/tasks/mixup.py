"""Mixup and cutmix, as timm does them: images of a batch, their labels and weights."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Mix(NamedTuple):
    """How the images of a batch are mixed. The partner of image i is image i of the reversed batch."""

    weight: jax.Array  # weight of an image in its mixture, ()
    inside: jax.Array  # true for pixels taken from the partner (cutmix) `(H, W)`; all false for mixup


def draw_mix(
    key: jax.Array, shape: tuple[int, int], mixup: float, cutmix: float, probability: float, switch: float
) -> Mix:
    """timm's batch mode: one weight from Beta(alpha, alpha), mixup or cutmix, for the whole batch of images `shape`."""
    k_apply, k_switch, k_mixup, k_cutmix, k_place = jax.random.split(key, 5)
    use_cutmix = jax.random.bernoulli(k_switch, switch if mixup and cutmix else float(cutmix > 0))
    apply = jax.random.bernoulli(k_apply, probability)
    lam_mixup = jax.random.beta(k_mixup, mixup, mixup) if mixup else jnp.ones(())
    lam_cutmix = jax.random.beta(k_cutmix, cutmix, cutmix) if cutmix else jnp.ones(())
    corner = jnp.floor(jax.random.uniform(k_place, (2,)) * np.array(shape))
    inside, lam_box = cutmix_box(lam_cutmix, corner, shape)
    cut = use_cutmix & apply
    weight = jnp.where(use_cutmix, lam_box, lam_mixup)
    return Mix(jnp.where(apply, weight, 1.0), inside & cut)


def cutmix_box(lam: jax.Array, centre: jax.Array, shape: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """timm's box of area `1 - lam` around `centre`, clipped at the border.

    Returns its mask, of `shape` (H, W), and the share of the image outside the box.
    """
    sides = np.array(shape)
    cut = jnp.floor(sides * jnp.sqrt(1.0 - lam))
    start = centre - jnp.floor(cut / 2)
    low, high = jnp.clip(start, 0, sides), jnp.clip(start + cut, 0, sides)
    rows, cols = ((at >= low[axis]) & (at < high[axis]) for axis, at in enumerate(map(jnp.arange, shape)))
    area = (high[0] - low[0]) * (high[1] - low[1])
    return rows[:, None] & cols[None], 1.0 - area / (shape[0] * shape[1])


def mix_images(images: jax.Array, mix: Mix) -> jax.Array:
    """`(B, H, W, C)` mixed with their partners."""
    partner = images[::-1]
    blended = mix.weight * images + (1 - mix.weight) * partner
    cut = mix.inside.any()
    pasted = jnp.where(mix.inside[None, :, :, None], partner, images)
    return jnp.where(cut, pasted, blended)


def mixed_targets(labels: jax.Array, weight: jax.Array, num_classes: int, smoothing: float) -> jax.Array:
    """Smoothed one-hot labels of a mixed batch `(B, num_classes)`."""
    hot = jax.nn.one_hot(labels, num_classes) * (1 - smoothing) + smoothing / num_classes
    return weight * hot + (1 - weight) * hot[::-1]
