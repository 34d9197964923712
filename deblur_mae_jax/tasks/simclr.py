"""SimCLR (Chen et al. 2020): the embedding of a view identifies the other view of its image among all others.

With a degradation, the first view of every image is degraded and the second is clean: contrastive deblurring.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.tasks import losses
from deblur_mae_jax.tasks.contract import Kind, Task

KIND = Kind("contrast", axes=(2,), evaluator="pretraining")


def make(model: Any, *, temperature: float = 0.1) -> Task:
    """NT-Xent between two views of every image.

    temperature: divides the cosine similarities.

    The other images of the global batch are the negatives. With accumulation, those of one share are.
    The loss takes `inputs` and `other_targets` `(B, H, W, C)`, the first view, degraded, and the second, clean; and
    for a conditioned model `level` `(B,)`. In its `out`, `accuracy` `(B,)` is the share of the two embeddings that are
    nearest to the other one of their image.
    """
    if temperature <= 0:
        raise UserError(f"config.task.temperature={temperature} must be above 0")
    if model.momentum or model.predictor:
        raise UserError("config.task.name=simclr needs config.model.momentum=False and config.model.predictor=()")

    def loss(params, batch, keys):
        # Views of one image are neighbours, so that none moves to another device. BatchNorm sees both together.
        join = lambda a, b: jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])
        level = batch.get("level")
        level = None if level is None else join(level, jnp.ones_like(level))
        images = join(batch["inputs"], batch["other_targets"])
        embedded, out = model.apply({"params": params}, images, level=level, train=True)
        first, second = jnp.moveaxis(embedded.reshape(-1, 2, embedded.shape[1]), 1, 0)
        right = losses.nearest(first, second)
        return 2.0 * losses.nt_xent(first, second, temperature), {
            "assign": jax.lax.stop_gradient(out["assign"]),
            "accuracy": right,
        }

    return Task(loss, trains=lambda name: not name.endswith("pos_embed"))
