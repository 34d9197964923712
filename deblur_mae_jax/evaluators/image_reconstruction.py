"""Measure the reconstruction of a fixed set of 2-D images and draw a sheet of examples."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import dm_pix
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from deblur_mae_jax.input_pipeline.keys import evaluation_keys
from deblur_mae_jax.metrics import representation
from deblur_mae_jax.models import masking
from deblur_mae_jax.network import Network
from deblur_mae_jax.reports.reconstruction import reconstruction_sheet
from deblur_mae_jax.tasks import losses
from deblur_mae_jax.tasks.contract import Task

Arrays = dict[str, np.ndarray]
# The outputs of `evaluate` that `summary` needs.
MEASURED = ("loss", "loss_of_mean", "mse_degraded", "mse_restored", "ssim_degraded", "ssim_restored")


def mse(a: jax.Array, b: jax.Array) -> jax.Array:
    """Mean squared error `(B,)` on the 0..1 scale, of gray levels `(B, H, W, C)`."""
    return jnp.square((a - b) / 255).mean(axis=(1, 2, 3))


def ssim(a: jax.Array, b: jax.Array) -> jax.Array:
    """Structural similarity `(B,)` of gray levels `(B, H, W, C)`."""
    return dm_pix.ssim(a / 255, b / 255)


def spread_levels(count: int, num_levels: int) -> jax.Array:
    """The blur level of each measured image `(count,)`: the strongest first, each level once in `num_levels` images."""
    stride = next(s for s in range(3, num_levels + 4) if math.gcd(s, num_levels) == 1)
    return (num_levels - (jnp.arange(count) * stride) % num_levels).astype(jnp.int32)


def make(network: Network) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """Return `evaluate(params, examples) -> arrays`, a function for `jax.jit`.

    Numbers per image `(B,)`, and images in gray levels `(B, H, W, C)`:

    loss: the loss that training minimises.
    loss_of_mean: error of predicting each image by its own mean; every model must do better than this.
    mse_degraded, mse_restored, ssim_degraded, ssim_restored: of the degraded input and its unmasked reconstruction.
    features: mean of the patch tokens of the unmasked input `(B, D)`, if the network has such tokens.
    level: of the blur. clean, degraded, masked: the original, the degraded input, and that with masked patches.
    reconstructed, restored: from the visible patches, as in training; and with nothing masked.

    A generative network has `sampled`, a drawing from the visible patches, and as `restored` the mean of several.
    """
    inputs, model, task = network.inputs, network.model, network.task
    whole = lambda patches: masking.unpatchify(patches, model.mask_size, model.in_chans, model.mask_grid)

    def pixels(patches, goal):
        if task.norm_pix_loss:
            patches = losses.denormalise_patches(patches, goal)
        return inputs.gray_levels(whole(patches))

    def evaluate(params, examples):
        count = examples["size"].shape[0]
        keys = evaluation_keys(jnp.arange(count))
        level = None
        if inputs.degradation.at_level is not None:
            level = spread_levels(count, inputs.degradation.num_levels)
        batch = inputs.evaluate(examples, keys, level)
        per_image, out = task.loss(params, batch, keys)
        goal = masking.patchify(batch["targets"], model.mask_size)
        restored, more = model.apply({"params": params}, batch["inputs"], level=batch.get("level"))
        drawn = _drawings(task, params, batch, keys)

        average = out["target"].mean(axis=(1, 2), keepdims=True)
        clean, degraded = (inputs.gray_levels(batch[name]) for name in ("targets", "inputs"))
        hidden = out["mask"][..., None]
        shown = masking.patchify(degraded, model.mask_size)
        masked = whole(jnp.where(hidden > 0, 128.0, shown))
        seen = {"degraded": degraded, "restored": pixels(drawn.get("restored", restored), goal)}
        if drawn:
            seen["sampled"] = pixels(drawn["sampled"], goal)
        flat = jnp.broadcast_to(average, out["target"].shape)
        measures = {f"mse_{name}": mse(image, clean) for name, image in seen.items()}
        measures |= {f"ssim_{name}": ssim(image, clean) for name, image in seen.items()}
        return _features(model, more) | measures | seen | {
            "loss": per_image,
            "loss_of_mean": losses.patch_error(flat, out["target"], out["counted"], task.error),
            "level": batch.get("level", jnp.zeros(count, jnp.int32)),
            "clean": clean,
            "masked": masked,
            "reconstructed": pixels(out["pred"], goal),
        }  # fmt: skip

    return evaluate


def _drawings(task: Task, params: Any, batch: Any, keys: Any) -> dict[str, jax.Array]:
    """One drawing of a generative network, and the mean of several, as patches; {} for others."""
    if task.sample is None:
        return {}
    draw = task.sample

    def add(total, number):
        one = draw(params, batch, keys, number)
        return total + one, one

    start = jnp.zeros_like(jax.eval_shape(draw, params, batch, keys, 0))
    total, each = jax.lax.scan(add, start, jnp.arange(task.samples))
    return {"sampled": each[0], "restored": total / task.samples}


def _features(model: Any, out: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The mean of the patch tokens of images that have been encoded anyway, if the network has such tokens."""
    return {"features": out["latent"][:, model.num_prefix :].mean(axis=1)} if "latent" in out else {}


def sheet(arrays: Arrays, count: int, names: list[str], degradation: Any) -> Image.Image:
    """Clean, degraded, masked and reconstructed views of the first `count` images."""
    size = 0.0 if degradation.at_level is None else _sigma(degradation, 1)
    return reconstruction_sheet(arrays, count, names, degradation.num_levels, size)


def psnr(mse: np.ndarray) -> float:
    """PSNR in dB of the mean squared error over all images, on the 0..1 scale."""
    return float(-10 * np.log10(np.maximum(np.mean(mse), 1e-12)))


def by_level(arrays: Arrays, degradation: Any) -> list[dict[str, float]]:
    """The measures of every blur level that occurred, weakest first; [] for a degradation without levels."""
    rows = []
    for level in sorted(set(arrays["level"].tolist()) - {0}):
        at = arrays["level"] == level
        row = {"level": level, "sigma": _sigma(degradation, level), "images": int(at.sum())}
        rows.append(row | summary({name: arrays[name][at] for name in MEASURED}))
    return rows


def _sigma(degradation: Any, level: int) -> float:
    """Sigma of the Gaussian of a level, in pixels; 0 for other blurs."""
    return float(degradation.at_level(jnp.int32(level)).get("sigma", 0.0))


def summary(arrays: Arrays) -> dict[str, float]:
    """Means over the images, with PSNR in dB."""

    return {
        "eval_loss": float(arrays["loss"].mean()),
        "eval_loss_of_mean": float(arrays["loss_of_mean"].mean()),
        "psnr_degraded": psnr(arrays["mse_degraded"]),
        "psnr_restored": psnr(arrays["mse_restored"]),
        "ssim_degraded": float(arrays["ssim_degraded"].mean()),
        "ssim_restored": float(arrays["ssim_restored"].mean()),
        **_of_drawings(arrays),
        **(representation.measures(arrays["features"]) if "features" in arrays else {}),
    }


def _of_drawings(arrays: Arrays) -> dict[str, float]:
    """Measures of one drawing of each image, of a generative network."""
    if "mse_sampled" not in arrays:
        return {}
    return {"psnr_sampled": psnr(arrays["mse_sampled"]), "ssim_sampled": float(arrays["ssim_sampled"].mean())}
