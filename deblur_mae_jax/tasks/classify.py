"""Classification: fine-tuning and linear probing (MAE's recipes; D2MAE's f(x_b, t*))."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from deblur_mae_jax import augment
from deblur_mae_jax.errors import UserError

KIND = "classify"
EVALUATOR = "live_classification"
SUPERVISED = True


def make(
    model: Any,
    *,
    label_smoothing: float = 0.0,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    mix_probability: float = 1.0,
    mix_switch: float = 0.5,
    class_weights: Sequence[float] = (),
    frozen: bool = False,
) -> Any:
    """`loss(params, batch, keys) -> (cross-entropy (B,), out)`.

    batch: `inputs` `(B, S, S, C)`, `label` `(B,)` and, for a conditioned model, `level` `(B,)`. Images
    are mixed with their partners (timm's mixup and cutmix), and so are targets and level codes.
    frozen: only the head learns (a linear probe). out: `logits` `(B, num_classes)`.
    """
    for name, value in (("label_smoothing", label_smoothing), ("mix_probability", mix_probability),
                        ("mix_switch", mix_switch)):  # fmt: skip
        if not 0 <= value <= 1:
            raise UserError(f"config.task.{name}={value} must be in [0, 1]")
    for name, value in (("mixup", mixup), ("cutmix", cutmix)):
        if value < 0:
            raise UserError(f"config.task.{name}={value} must be 0 (off) or greater")
    weights = jnp.asarray(class_weights) if len(class_weights) else None

    def loss(params, batch, keys):
        images, labels, level = batch["inputs"], batch["label"], batch.get("level")
        partner, share = None, jnp.ones(())
        if mixup or cutmix:
            drawn = augment.draw_mix(
                keys["mix"][0], images.shape[1], mixup, cutmix, mix_probability, mix_switch
            )
            images, share = augment.mix_images(images, drawn), drawn.weight
            if level is not None:
                partner = (level[::-1], jnp.broadcast_to(share, level.shape))
        logits, new = model.apply(
            {"params": params}, images, level, partner, keys["drop_path"], train=True, frozen=frozen
        )
        targets = augment.mixed_targets(labels, share, model.num_classes, label_smoothing)
        terms = -targets * jax.nn.log_softmax(logits)
        if weights is not None:
            terms = terms * weights
        return terms.sum(axis=-1), {"logits": logits, "assign": new}

    return loss


def trained(frozen: bool) -> Any:
    """Which top-level entries of the parameter tree learn."""
    return lambda name: not frozen or name.startswith("head")
