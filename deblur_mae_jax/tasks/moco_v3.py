"""MoCo v3 (Chen, Xie and He 2021): each view predicts how a momentum copy of the network embeds the other view.

With a degradation, the network sees degraded views and its momentum copy the clean ones: contrastive deblurring.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import siamese
from deblur_mae_jax.tasks import losses
from deblur_mae_jax.tasks.contract import Kind, Task, merged

KIND = Kind("contrast", axes=(2,), evaluator="pretraining")
# Not trained in MoCo v3's ViT: the patch embedding, whose gradient makes training unstable, and the fixed positions.
FIXED = (f"{siamese.BASE}patch_embed/", f"{siamese.BASE}pos_embed")


def schedule(momentum: float, progress: Any) -> Any:
    """The momentum at a share `progress` of the run: from `momentum` to 1 along half a cosine."""
    return 1.0 - (1.0 - momentum) * (1.0 + jnp.cos(jnp.pi * progress)) / 2.0


def make(
    model: Any, *, temperature: float = 0.2, momentum: float = 0.99, freeze_patch_embed: bool = True
) -> Task:  # fmt: skip
    """Contrast between the predictions of one view and the momentum embeddings of the other, in both directions.

    temperature: divides the cosine similarities.
    momentum: weight of the momentum encoder's own parameters in its update, at the start; it rises to 1.
    freeze_patch_embed: do not train the patch embedding of a ViT.

    The other images of the global batch are the negatives. With accumulation, those of one share are.
    The loss takes `inputs`, `targets`, `other_inputs` and `other_targets` `(B, H, W, C)`, two views of every image, and
    for a conditioned model `level` and `other_level` `(B,)`. In its `out`, `accuracy` `(B,)` is the share of the two
    predictions that are nearest to the embedding of their own image.
    """
    if temperature <= 0:
        raise UserError(f"config.task.temperature={temperature} must be above 0")
    if not 0 <= momentum <= 1:
        raise UserError(f"config.task.momentum={momentum} must be in [0, 1]")
    if not (model.momentum and model.predictor):
        raise UserError("config.task.name=moco_v3 needs config.model.momentum=True and config.model.predictor")

    def loss(params, batch, keys):
        keep = schedule(momentum, batch["progress"]) if "progress" in batch else 1.0
        moved = siamese.moved(params["momentum_encoder"], params["base_encoder"], keep)
        assign = {"momentum_encoder": moved}
        predictions, targets = [], []
        # The statistics of BatchNorm are those of one view at a time, as in MoCo v3.
        for view in ("", "other_"):
            level = batch.get(f"{view}level")
            running = merged(params, {name: part for name, part in assign.items() if name != "momentum_encoder"})
            predicted, out = model.apply({"params": running}, batch[f"{view}inputs"], level=level, train=True)
            predictions.append(predicted)
            assign = merged(assign, out["assign"])
        for view in ("", "other_"):
            level = batch.get(f"{view}level")
            clean = None if level is None else jnp.ones_like(level)
            variables = {"params": params | {"momentum_encoder": assign["momentum_encoder"]}}
            target, out = model.apply(variables, batch[f"{view}targets"], level=clean, method=model.target)
            targets.append(jax.lax.stop_gradient(target))
            assign = merged(assign, out["assign"])
        first, right = losses.info_nce(predictions[0], targets[1], temperature)
        second, also = losses.info_nce(predictions[1], targets[0], temperature)
        return first + second, {"assign": jax.lax.stop_gradient(assign), "accuracy": (right + also) / 2}

    def trains(name):
        fixed = FIXED if freeze_patch_embed else FIXED[1:]
        return not name.startswith((siamese.MOMENTUM, *fixed))

    def begin(params):
        return params | {"momentum_encoder": jax.tree.map(jnp.array, params["base_encoder"])}

    return Task(loss, trains=trains, begin=begin)
