"""Measure the reconstruction of a fixed set of volumes and draw a sheet of examples."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from deblur_mae_jax.data.nifti import MODALITIES
from deblur_mae_jax.evaluators.image_reconstruction import Arrays, psnr
from deblur_mae_jax.input_pipeline.keys import evaluation_keys
from deblur_mae_jax.network import Network
from deblur_mae_jax.reports import page

COLUMNS = {
    "clean": "clean",
    "degraded": "input",
    "reconstructed": "rebuilt",
    "difference": "|difference| x 2",
}
PLANES = ("axial", "coronal", "sagittal")


def make(network: Network) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """Return `evaluate(params, examples) -> arrays`, a function for `jax.jit`.

    Numbers per volume, `(B,)`:

    loss: the loss that training minimises.
    loss_of_mean: L1 error of predicting each cube by its own median; every network must do better than this.
    reconstruction, contrast: the two parts of the loss.
    mse_degraded, mse_restored: error of the input and of its unmasked reconstruction, if the task reconstructs, as a
        share of the squared range of the clean cube, because CT and MR have different units.

    The three middle planes, `(B, 3, S, T)`:

    clean, degraded, reconstructed: the original, the degraded input and its reconstruction.
    """
    inputs, model, task = network.inputs, network.model, network.task

    def evaluate(params, examples):
        count = examples["size"].shape[0]
        keys = evaluation_keys(jnp.arange(count))
        batch = inputs.evaluate(examples, keys)
        per_volume, out = task.loss(params, batch, keys)
        clean = out.get("clean", batch["targets"])
        degraded = out.get("degraded", batch["inputs"] * (1 - out["mask"]))
        middle = jnp.median(clean, axis=(1, 2, 3), keepdims=True)

        space = (1, 2, 3, 4)
        spread = clean.max(space) - clean.min(space)
        spread = jnp.where(spread > 1e-3, spread, 1.0)  # a cube of air has no range

        def mse(volume):
            return jnp.square(volume - clean).mean(axis=space) / jnp.square(spread)

        arrays = {
            "loss": per_volume,
            "loss_of_mean": jnp.abs(clean - middle).mean(axis=(1, 2, 3, 4)),
            "reconstruction": out["reconstruction"],
            "contrast": jnp.broadcast_to(out["contrast"], (count,)),
            "mse_degraded": mse(degraded),
            "modality": batch.get("modality", jnp.zeros(count, jnp.int32)),
            "clean": planes(clean),
            "degraded": planes(degraded),
        }
        if "rotation_accuracy" in out:
            arrays["rotation_accuracy"] = out["rotation_accuracy"]
        if out["pred"] is not None:
            whole = "clean" in out  # the task has created the views and reconstructed all of them
            restored = out["pred"] if whole else model.apply({"params": params}, batch["inputs"])[0]
            arrays |= {"mse_restored": mse(restored), "reconstructed": planes(out["pred"])}
        return arrays

    return evaluate


def planes(volume: jax.Array) -> jax.Array:
    """The middle planes of `(B, D, H, W, 1)`: across the third, second and first axis, `(B, 3, S, T)`.

    Planes of different sizes are centred in black ones of one size.
    """
    x = volume[..., 0]
    first, second, third = (side // 2 for side in x.shape[1:])
    cuts = (x[:, :, :, third], x[:, :, second], x[:, first])
    turned = [jnp.swapaxes(cut, 1, 2)[:, ::-1] for cut in cuts]
    room = [max(cut.shape[axis] for cut in turned) for axis in (1, 2)]

    def centred(cut: jax.Array) -> jax.Array:
        spare = [n - side for n, side in zip(room, cut.shape[1:], strict=True)]
        return jnp.pad(cut, ((0, 0), *((n // 2, n - n // 2) for n in spare)))

    return jnp.stack([centred(cut) for cut in turned], axis=1)


def by_level(arrays: Arrays, degradation: Any) -> list[dict[str, float]]:
    """Return an empty list, because disruptions of volumes have no levels."""
    return []


def summary(arrays: Arrays) -> dict[str, float]:
    """Means over the volumes; the peak of the PSNR is the range of each clean cube."""

    out = {
        "eval_loss": float(arrays["loss"].mean()),
        "eval_contrast": float(arrays["contrast"].mean()),
        "psnr_degraded": psnr(arrays["mse_degraded"]),
    }
    if "mse_restored" in arrays:  # the task reconstructs
        out["eval_reconstruction"] = float(arrays["reconstruction"].mean())
        out["eval_loss_of_mean"] = float(arrays["loss_of_mean"].mean())
        out["psnr_restored"] = psnr(arrays["mse_restored"])
    if "rotation_accuracy" in arrays:
        out["eval_rotation_accuracy"] = float(arrays["rotation_accuracy"].mean())
    return out


def sheet(arrays: Arrays, count: int, names: list[str], degradation: Any) -> Image.Image:
    """The middle planes of the first volumes, each scaled to the range of its clean cube."""
    rows, labels = [], []
    columns_drawn: list[str] = [k for k in ("clean", "degraded", "reconstructed") if k in arrays]
    columns = {k: v for k, v in COLUMNS.items() if k in columns_drawn or "reconstructed" in columns_drawn}
    for i in range(min(count, len(arrays["clean"]))):
        low, high = np.percentile(arrays["clean"][i], (0.5, 99.5))
        for number, plane in enumerate(PLANES):
            shown = {k: arrays[k][i, number] for k in columns_drawn}
            gray: dict[str, np.ndarray] = {k: 255 * (v - low) / max(high - low, 1e-6) for k, v in shown.items()}
            if "reconstructed" in gray:
                gray["difference"] = 2 * np.abs(gray["reconstructed"] - gray["clean"])
            rows.append([gray[k][..., None] for k in columns])
            modality = MODALITIES[int(arrays["modality"][i])]
            labels.append(f"{Path(names[i]).name[:16]}\n{modality}, {plane}")
    return page.sheet(rows, list(columns.values()), labels)
