"""Masked reconstruction: MAE, denoising MAE, DeblurrMAE, D2MAE and SimMIM, which differ only in settings and network.

| method | degrade | loss_on | model.conditioning |
|---|---|---|---|
| MAE | none | masked | none |
| denoising MAE | noise.gaussian_noise | all | none |
| DeblurrMAE | blur.gaussian, speckle.srad, ... | all | none |
| D2MAE | blur.gaussian_levels | all | token |
| SimMIM | none | masked, error=absolute | none |
"""

from __future__ import annotations

import math
from typing import Any

import jax

from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.models import masking
from deblur_mae_jax.tasks import losses
from deblur_mae_jax.tasks.contract import Kind, Task

KIND = Kind("reconstruct", axes=(2,), evaluator="pretraining")
LOSS_ON = ("all", "masked")
TARGETS = ("clean", "degraded")


def make(
    model: Any,
    *,
    mask_ratio: float = 0.75,
    loss_on: str = "all",
    norm_pix_loss: bool = False,
    error: str = "squared",
    target: str = "clean",
) -> Task:
    """Reconstruct the clean image from the visible patches of the degraded one.

    mask_ratio: share of the patches that are masked.
    loss_on: "all" patches count, or the "masked" ones.
    norm_pix_loss: predict patches of mean 0 and standard deviation 1.
    error: of a pixel, "squared" or "absolute".
    target: "clean" is the papers' deblurring; "degraded" reconstructs the input, a control.

    The loss takes `inputs`, `targets` `(B, H, W, C)` and, for a conditioned model, `level` `(B,)`. Its `out` has the
    patches `pred` and `target` `(B, L, P*P*C)`, `mask` `(B, L)`, and `counted`, which is the mask if only masked
    patches count and else `None`.
    """
    if loss_on not in LOSS_ON:
        raise unknown("config.task.loss_on", loss_on, LOSS_ON)
    if error not in losses.ERRORS:
        raise unknown("config.task.error", error, losses.ERRORS)
    if target not in TARGETS:
        raise unknown("config.task.target", target, TARGETS)
    if not 0 <= mask_ratio < 1:
        raise UserError(f"config.task.mask_ratio={mask_ratio} must be in [0, 1)")
    num_patches = math.prod(model.mask_grid)
    if masking.num_kept(num_patches, mask_ratio) < 1:
        raise UserError(f"config.task.mask_ratio={mask_ratio} leaves none of the {num_patches} patches visible")
    if loss_on == "masked" and masking.num_kept(num_patches, mask_ratio) == num_patches:
        raise UserError(
            f"config.task.mask_ratio={mask_ratio} masks no patch, so "
            "config.task.loss_on=masked has nothing to count; use loss_on=all"
        )

    def loss(params, batch, keys):
        noise = jax.vmap(lambda key: jax.random.uniform(key, (num_patches,)))(keys["mask"])
        pred, out = model.apply(
            {"params": params},
            batch["inputs"],
            noise=noise,
            mask_ratio=mask_ratio,
            level=batch.get("level"),
            drop_path_keys=keys.get("drop_path") if "progress" in batch else None,
        )
        goal = batch["targets"] if target == "clean" else batch["inputs"]
        goal = masking.patchify(goal, model.mask_size)
        if norm_pix_loss:
            goal = losses.normalise_patches(goal)
        counted = out["mask"] if loss_on == "masked" else None
        per_image = losses.patch_error(pred, goal, counted, error)
        return per_image, {"pred": pred, "target": goal, "mask": out["mask"], "counted": counted}

    return Task(loss, mask_ratio=mask_ratio, norm_pix_loss=norm_pix_loss, error=error)
