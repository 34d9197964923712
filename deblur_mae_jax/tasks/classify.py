"""Classification: fine-tuning and linear probing (MAE's recipes; D2MAE's f(x_b, t*))."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.tasks import mixup as mixing
from deblur_mae_jax.tasks.contract import Kind, Task

KIND = Kind("classify", axes=(2,), evaluator="classification", supervised=True)


def _in_head(name: str) -> bool:
    """Whether a parameter belongs to the classifier. The norm before ConvNeXt's belongs to the features."""
    return name.startswith(("fc/", "head")) and not name.startswith("head/norm/")


def make(
    model: Any,
    *,
    label_smoothing: float = 0.1,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    mix_probability: float = 1.0,
    mix_switch: float = 0.5,
    class_weights: Sequence[float] = (),
    frozen: bool = False,
) -> Task:
    """Classification with cross-entropy. timm's mixup and cutmix mix images, targets and level codes.

    label_smoothing: share of the target that is spread over all classes.
    mixup: parameter of mixup's Beta distribution. 0: off.
    cutmix: parameter of cutmix's Beta distribution. 0: off.
    mix_probability: probability that a batch is mixed.
    mix_switch: probability of cutmix if mixup is on too.
    class_weights: weight of each class in the loss. (): none.
    frozen: train the head only (a linear probe).

    The loss takes `inputs` `(B, H, W, C)`, `label` `(B,)` and, for a conditioned model, `level` `(B,)`. If the batch
    has `features` `(B, D)`, these are classified instead of the inputs. Its `out` has `logits` `(B, num_classes)`.
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
            drawn = mixing.draw_mix(keys["mix"][0], images.shape[1:3], mixup, cutmix, mix_probability, mix_switch)
            images, share = mixing.mix_images(images, drawn), drawn.weight
            if level is not None:
                partner = (level[::-1], jnp.broadcast_to(share, level.shape))
        logits, out = model.apply(
            {"params": params},
            images,
            level=level,
            mix=partner,
            drop_path_keys=keys["drop_path"],
            train=True,
            frozen=frozen,
            encoded=batch.get("features"),
        )
        targets = mixing.mixed_targets(labels, share, model.num_classes, label_smoothing)
        terms = -targets * jax.nn.log_softmax(logits)
        if weights is not None:
            terms = terms * weights
        return terms.sum(axis=-1), {"logits": logits, "assign": out.get("assign", {})}

    return Task(loss, trains=lambda name: not frozen or _in_head(name))
