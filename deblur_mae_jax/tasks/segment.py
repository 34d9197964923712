"""Segmentation of volumes or pictures: Dice and cross-entropy (fine-tuning of Disruptive Autoencoders, MIDL 2024)."""

from __future__ import annotations

from typing import Any

import jax

from deblur_mae_jax import losses
from deblur_mae_jax.errors import UserError, unknown

KIND = "segment"
EVALUATOR = "live_segmentation"
SUPERVISED = True
LOSSES = ("dice_ce", "dice", "ce")


def make(
    model: Any,
    *,
    loss: str = "dice_ce",
    include_background: bool = True,
    dice_weight: float = 1.0,
    ce_weight: float = 1.0,
) -> Any:
    """`loss(params, batch, keys) -> (loss (B,), out)`.

    batch: `inputs` `(B, *space, C)`, `mask` `(B, *space)` class numbers and, for a conditioned model, `level` `(B,)`.
    loss: "dice_ce" (the published code), "dice" (the paper's words) or "ce". include_background: whether class 0 counts
    in the Dice term. out: `logits` `(B, *space, K)`.
    """
    if loss not in LOSSES:
        raise unknown("config.task.loss", loss, LOSSES)
    for name, value in (("dice_weight", dice_weight), ("ce_weight", ce_weight)):
        if value < 0:
            raise UserError(f"config.task.{name}={value} must be 0 or greater")

    def compute(params: Any, batch: dict[str, jax.Array], keys: Any) -> tuple[jax.Array, dict]:
        logits = model.apply(
            {"params": params}, batch["inputs"], batch.get("level"), method=model.segment
        )
        total: Any = 0.0
        if loss != "ce":
            total += dice_weight * losses.dice(
                logits, batch["mask"], include_background=include_background
            )
        if loss != "dice":
            total += ce_weight * losses.voxel_cross_entropy(logits, batch["mask"])
        return total, {"logits": logits}

    return compute
