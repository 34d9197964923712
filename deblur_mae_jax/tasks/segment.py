"""Segmentation of volumes or 2-D images: Dice and cross-entropy (fine-tuning of Disruptive Autoencoders, MIDL 2024)."""

from __future__ import annotations

from typing import Any

import jax

from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.models.segmenter import Segmenter
from deblur_mae_jax.tasks import losses
from deblur_mae_jax.tasks.contract import Kind, Task

KIND = Kind("segment", axes=(2, 3), evaluator="segmentation", supervised=True)
LOSSES = ("dice_ce", "dice", "ce")


def make(
    model: Any,
    *,
    loss: str = "dice_ce",
    include_background: bool = True,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
    auxiliary_weight: float = 0.0,
) -> Task:
    """Dice and cross-entropy.

    loss: "dice_ce" (the published code), "dice" (the paper's words) or "ce".
    include_background: count class 0 in the Dice term.
    dice_weight, ce_weight: of the two terms.
    auxiliary_weight: weight of the cross-entropy of the network's second head, if it has one.

    The loss takes `inputs` `(B, *space, C)`, `mask` `(B, *space)` class numbers and, for a conditioned model, `level`
    `(B,)`.
    out: `logits` `(B, *space, K)`.
    """
    if loss not in LOSSES:
        raise unknown("config.task.loss", loss, LOSSES)
    weights = {"dice_weight": dice_weight, "ce_weight": ce_weight, "auxiliary_weight": auxiliary_weight}
    for name, value in weights.items():
        if value < 0:
            raise UserError(f"config.task.{name}={value} must be 0 or greater")

    def compute(params: Any, batch: dict[str, jax.Array], keys: Any) -> tuple[jax.Array, dict]:
        logits, out = model.apply(
            {"params": params},
            batch["inputs"],
            level=batch.get("level"),
            train=True,
            drop_path_keys=keys.get("drop_path"),
        )
        total: Any = 0.0
        if loss != "ce":
            total += dice_weight * losses.dice(logits, batch["mask"], include_background=include_background)
        if loss != "dice":
            total += ce_weight * losses.voxel_cross_entropy(logits, batch["mask"])
        if auxiliary_weight and "auxiliary" not in out:
            raise UserError(
                f"config.task.auxiliary_weight={auxiliary_weight}: this network has no second head. Choices: 0; "
                "config.model.decoder=upernet"
            )
        if auxiliary_weight:
            total += auxiliary_weight * losses.voxel_cross_entropy(out["auxiliary"], batch["mask"])
        return total, {"logits": logits, "assign": out.get("assign", {})}

    # Its decoder has running statistics, which then have no optimiser memory.
    return Task(compute, trains=(lambda name: True) if isinstance(model, Segmenter) else None)
