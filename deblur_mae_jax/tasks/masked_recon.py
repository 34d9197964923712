"""Masked reconstruction: MAE, denoising MAE, DeblurrMAE and D2MAE, which differ only in settings.

| method | degrade | loss_on | model.conditioning |
|---|---|---|---|
| MAE | none | masked | none |
| denoising MAE | noise.gaussian_noise | all | none |
| DeblurrMAE | blur.gaussian, speckle.srad, ... | all | none |
| D2MAE | blur.gaussian_levels | all | token |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from deblur_mae_jax import losses, masking
from deblur_mae_jax.errors import UserError, unknown

KIND = "reconstruct"
EVALUATOR = "live_reconstruction"
LOSS_ON = ("all", "masked")
TARGETS = ("clean", "degraded")

Loss = Callable[[Any, dict[str, jax.Array], dict[str, jax.Array]], tuple[jax.Array, dict]]


def make(
    model: Any,
    *,
    mask_ratio: float = 0.75,
    loss_on: str = "all",
    norm_pix_loss: bool = False,
    target: str = "clean",
) -> Loss:
    """`loss(params, batch, keys) -> (loss (B,), out)`.

    batch: `inputs`, `targets` `(B, S, S, C)` and, for a conditioned model, `level` `(B,)`; keys: the
    stream `mask`, one key per example. out: `pred` and `target` patches `(B, L, P*P*C)`, `mask`.
    target: "clean" is the papers' deblurring; "degraded" reconstructs the input, a control.
    """
    if loss_on not in LOSS_ON:
        raise unknown("config.task.loss_on", loss_on, LOSS_ON)
    if target not in TARGETS:
        raise unknown("config.task.target", target, TARGETS)
    if not 0 <= mask_ratio < 1:
        raise UserError(f"config.task.mask_ratio={mask_ratio} must be in [0, 1)")
    num_patches = model.grid**2
    if masking.num_kept(num_patches, mask_ratio) < 1:
        raise UserError(
            f"config.task.mask_ratio={mask_ratio} leaves none of the {num_patches} patches visible"
        )
    if loss_on == "masked" and masking.num_kept(num_patches, mask_ratio) == num_patches:
        raise UserError(
            f"config.task.mask_ratio={mask_ratio} masks no patch, so "
            "config.task.loss_on=masked has nothing to count; use loss_on=all"
        )

    def loss(params, batch, keys):
        noise = jax.vmap(lambda key: jax.random.uniform(key, (num_patches,)))(keys["mask"])
        pred, out = model.apply(
            {"params": params}, batch["inputs"], noise, mask_ratio, batch.get("level")
        )
        goal = batch["targets"] if target == "clean" else batch["inputs"]
        goal = masking.patchify(goal, model.patch_size)
        if norm_pix_loss:
            goal = losses.normalise_patches(goal)
        per_image = losses.patch_mse(pred, goal, out["mask"] if loss_on == "masked" else None)
        return per_image, {"pred": pred, "target": goal, "mask": out["mask"]}

    return loss
