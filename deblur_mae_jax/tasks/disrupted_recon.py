"""Disruptive Autoencoders: reconstruct a volume after noise, down-sampling and local masking (MIDL 2024).

Noise and down-sampling are the degradation of the input (`config.task.degrade`). Local masking is part of this task:
it masks channels of the patch embedding inside the encoder. A contrastive loss separates the last hidden states by
modality.

| method | degrade | local_mask | block_mask |
|---|---|---|---|
| DAE, all disruptions | noise and down_up | 0.6 | 0 |
| one disruption | one of them, or none | 0 or 0.6 | 0 |
| 3-D MAE (SimMIM) | none | 0 | 0.6 |
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.tasks import losses
from deblur_mae_jax.tasks.contract import Kind, Task

KIND = Kind("reconstruct", axes=(3,), evaluator="pretraining")
SCOPES = ("batch", "sample", "token")
LOSS_ON = ("all", "masked")
# Side of the blocks that are masked together, in voxels.
BLOCK = 16


def channel_mask(key: jax.Array, shape: tuple[int, ...], ratio: float, scope: str = "sample") -> jax.Array:
    """1 for the masked channels, int(ratio * C) of every token. Broadcasts to `shape`.

    shape: shape of the tokens `(D, H, W, C)`.
    ratio: share of the channels that are masked.
    scope: "token" draws channels for every token; "sample" and "batch" draw one set per key.
    """
    C = shape[-1]
    where = shape if scope == "token" else (1, 1, 1, C)
    order = jnp.argsort(jnp.argsort(jax.random.uniform(key, where), axis=-1), axis=-1)
    return (order < int(ratio * C)).astype(jnp.float32)


def block_mask(key: jax.Array, shape: tuple[int, ...], ratio: float) -> jax.Array:
    """1 for the masked voxels `(D, H, W, 1)`: ceil(ratio * blocks) of the blocks of 16 voxels.

    shape: (D, H, W).
    ratio: share of the blocks that are masked.
    """
    counts = sides.divided(shape, BLOCK, 3)
    total = math.prod(counts)
    masked = -int(-ratio * total // 1)
    order = jnp.argsort(jnp.argsort(jax.random.uniform(key, (total,))))
    blocks = (order < masked).astype(jnp.float32).reshape(*counts, 1)
    for axis in range(3):
        blocks = jnp.repeat(blocks, BLOCK, axis=axis)
    return blocks


def _check(model: Any, local_mask: float, local_mask_scope: str, block_mask_ratio: float, loss_on: str) -> None:
    """Raise `UserError` for invalid settings."""
    if local_mask_scope not in SCOPES:
        raise unknown("config.task.local_mask_scope", local_mask_scope, SCOPES)
    if loss_on not in LOSS_ON:
        raise unknown("config.task.loss_on", loss_on, LOSS_ON)
    for name, value in (("local_mask", local_mask), ("block_mask_ratio", block_mask_ratio)):
        if not 0 <= value < 1:
            raise UserError(f"config.task.{name}={value} must be in [0, 1)")
    if block_mask_ratio and not model.mask_token:
        raise UserError(
            "config.task.block_mask_ratio needs config.model.mask_token=True, the token that stands for what is masked"
        )
    if loss_on == "masked" and not block_mask_ratio:
        raise UserError("config.task.loss_on=masked needs config.task.block_mask_ratio: no voxel is masked")


def block_key(key: jax.Array) -> jax.Array:
    """The key of the masked blocks, whose draws are others than those of the channels."""
    return jax.random.fold_in(key, 1)


def make(
    model: Any,
    *,
    local_mask: float = 0.6,
    local_mask_scope: str = "sample",
    block_mask_ratio: float = 0.0,
    loss_on: str = "all",
    contrast: str = "paper",
    contrast_weight: float = 0.05,
    temperature: float = 0.07,
) -> Task:
    """L1 loss to the clean cube, plus a contrastive loss between modalities over the global batch.

    local_mask: share of the patch embedding's channels that are set to zero.
    local_mask_scope: what shares one choice of channels, "batch", "sample" or "token".
    block_mask_ratio: share of the 16-voxel blocks that the mask token replaces.
    loss_on: "all" voxels count, or the "masked" ones.
    contrast: form of the contrastive loss, "paper", "bce", "code" or "none"; see `losses.contrast`.
    contrast_weight, temperature: of the contrastive loss.

    The loss takes `inputs`, `targets` `(B, D, H, W, C)` and, for the contrast, `modality` `(B,)`. Its `out` has `pred`,
    `mask` `(B, D, H, W, 1)`, 1 for masked voxels (all 0 for local masking), `reconstruction` and `contrast` `(B,)`.
    """
    _check(model, local_mask, local_mask_scope, block_mask_ratio, loss_on)
    if contrast not in losses.CONTRASTS:
        raise unknown("config.task.contrast", contrast, losses.CONTRASTS)

    def loss(params, batch, keys):
        x, goal = batch["inputs"], batch["targets"]
        hidden = jnp.zeros((*x.shape[:4], 1))
        if block_mask_ratio:
            draw_blocks = lambda key: block_mask(block_key(key), x.shape[1:4], block_mask_ratio)
            hidden = jax.vmap(draw_blocks)(keys["mask"])
            x = x * (1 - hidden)

        def disrupt(tokens):
            draw = lambda key: channel_mask(key, tokens.shape[1:], local_mask, local_mask_scope)
            mask_keys = keys["mask"][:1] if local_mask_scope == "batch" else keys["mask"]
            dropped = jax.vmap(draw)(mask_keys)
            return tokens * (1 - dropped).astype(tokens.dtype)

        pred, extra = model.apply(
            {"params": params},
            x,
            disrupt=disrupt if local_mask else None,
            masked=hidden[:, ::2, ::2, ::2] if block_mask_ratio else None,
        )
        error = jnp.abs(pred - goal.astype(jnp.float32))
        if loss_on == "masked":
            counted = jnp.broadcast_to(hidden, error.shape)
            error = (error * counted).sum((1, 2, 3, 4)) / counted.sum((1, 2, 3, 4))
        else:
            error = error.mean((1, 2, 3, 4))
        apart = jnp.zeros(())
        if contrast != "none":
            apart = losses.contrast(extra["hidden"][-1], batch["modality"], temperature, contrast)
        out = {"pred": pred, "mask": hidden, "reconstruction": error, "contrast": apart}
        return error + contrast_weight * apart, out

    return Task(loss)
