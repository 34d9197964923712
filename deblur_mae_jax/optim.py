"""Optimisers and learning-rate schedule of MAE: pre-training, fine-tuning and linear probing.

He et al. 2022, tables 8 to 10 and the published code: AdamW, AdamW with layer-wise decay, LARS.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from deblur_mae_jax.errors import unknown

Schedule = Callable[[Any], Any]
# The first layer of layer-wise decay; in fine-tuning the tokens and tables are not decayed.
TOKENS = ("cls_token", "pos_embed", "blur_token", "level_embed", "mask_token")
STATISTICS = ("running_mean", "running_var")


def mae_learning_rate(
    epoch: Any, lr: float, min_lr: float, warmup_epochs: float, epochs: float
) -> jax.Array:
    """Linear warm-up from 0, then half a cosine to `min_lr`; `epoch` may be a fraction."""
    epoch = jnp.asarray(epoch, jnp.float32)
    warm = lr * epoch / max(warmup_epochs, 1e-12)
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-12)
    cosine = min_lr + (lr - min_lr) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(epoch < warmup_epochs, warm, cosine)


def timm_learning_rate(
    step: Any, lr: float, min_lr: float, warmup_lr: float, warmup_steps: float, steps: float
) -> jax.Array:
    """The schedule of DAE's code, timm's: a linear warm-up from `warmup_lr` takes the place of a cosine's beginning."""
    step = jnp.asarray(step, jnp.float32)
    warm = warmup_lr + (lr - warmup_lr) * step / max(warmup_steps, 1e-12)
    cosine = min_lr + (lr - min_lr) * 0.5 * (1.0 + jnp.cos(jnp.pi * step / steps))
    return jnp.where(step < warmup_steps, warm, jnp.where(step < steps, cosine, min_lr))


def monai_learning_rate(
    epoch: Any,
    lr: float,
    min_lr: float,
    warmup_epochs: float,
    epochs: float,
    warmup_lr: float = 0.0,
) -> jax.Array:
    """The schedule of DAE's fine-tuning code, MONAI's: per whole epoch, the first at `warmup_lr`.

    `lr` is reached in epoch `warmup_epochs - 1`, and half a cosine leads from epoch `warmup_epochs` to `epochs`.
    """
    epoch = jnp.asarray(epoch, jnp.float32)
    warm = warmup_lr + (lr - warmup_lr) * epoch / max(warmup_epochs - 1, 1e-12)
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-12)
    cosine = min_lr + (lr - min_lr) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(epoch < warmup_epochs, warm, cosine)


def _keys(path: tuple[Any, ...]) -> list[str]:
    return [str(getattr(part, "key", part)) for part in path]


def is_decayed(path: tuple[Any, ...], value: Any) -> bool:
    """MAE's pre-training rule: parameters with more than one axis, so also cls, mask, blur tokens."""
    return value.ndim > 1 and _keys(path)[-1] != "bias"


DECAY_ON = ("weights", "weights_and_tokens", "all")


def decay_mask(params: Any, on: str = "weights_and_tokens") -> Any:
    """Tree of booleans: where weight decay acts, one of `DECAY_ON`.

    weights_and_tokens: MAE's pre-training; weights: its fine-tuning, where tokens and the position table
    are left out; all: biases and norms too, as the published DeblurringMIM fine-tuning does.
    """
    if on not in DECAY_ON:
        raise unknown("config.optim.decay_on", on, DECAY_ON)

    def decayed(path, value):
        if on == "all":
            return True
        tokens = TOKENS if on == "weights" else ()
        return is_decayed(path, value) and not any(key in tokens for key in _keys(path))

    return jax.tree_util.tree_map_with_path(decayed, params)


def layer_scales(params: Any, decay: float, depth: int) -> Any:
    """Tree of learning-rate factors `decay ** (depth + 1 - layer)`.

    Layer 0 is the tokens, the position table and the patch embedding, block i is layer i + 1, and
    what follows the blocks is layer depth + 1.
    """

    def scale(path, value):
        name = _keys(path)[0]
        block = re.fullmatch(r"blocks_(\d+)", name)
        layer = 0 if name in (*TOKENS, "patch_embed") else depth + 1
        layer = int(block[1]) + 1 if block else layer
        return decay ** (depth + 1 - layer)

    return jax.tree_util.tree_map_with_path(scale, params)


def _kept(healthy: Any, new: Any, old: Any) -> Any:
    """`new`, or `old` where `healthy` is false."""
    return new if healthy is None else jnp.where(healthy, new, old)


def keep_state(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """`tx` with a further argument `healthy` of its update: where it is false, the state stays."""
    tx = optax.with_extra_args_support(tx)

    def update(updates, state, params=None, *, healthy=None, **rest):
        updates, new = tx.update(updates, state, params, **rest)
        return updates, jax.tree.map(lambda a, b: _kept(healthy, a, b), new, state)

    return optax.GradientTransformationExtraArgs(tx.init, update)


def scale_by_adam(b1: float, b2: float, eps: float) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam`, bit by bit, with the argument `healthy` of `keep_state`.

    The moments are selected here, once, before the update is computed from them. Selecting outside
    makes the update depend on both new and old moments, for which the CPU compiler copies them all:
    2.3 times as slow, and 8 bytes per parameter more.
    """

    def init(params):
        # Two trees: one array in both places could not be donated.
        mu, nu = (jax.tree.map(jnp.zeros_like, params) for _ in range(2))
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), mu, nu)

    def update(updates, state, params=None, *, healthy=None, **_):
        count = _kept(healthy, optax.safe_increment(state.count), state.count)
        mu = jax.tree.map(lambda m, g: _kept(healthy, (1 - b1) * g + b1 * m, m), state.mu, updates)
        nu = jax.tree.map(
            lambda v, g: _kept(healthy, (1 - b2) * jnp.square(g) + b2 * v, v), state.nu, updates
        )
        first, second = 1 - b1**count, 1 - b2**count
        updates = jax.tree.map(lambda m, v: (m / first) / (jnp.sqrt(v / second) + eps), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


def adamw(
    schedule: Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.05,
    clip_norm: float = 0.0,
    decay_on: str = "weights_and_tokens",
    layer_decay: float = 1.0,
    depth: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """AdamW as PyTorch defines it, with MAE's decay rules and optional clipping by global norm.

    layer_decay: below 1, each layer of the encoder of `depth` blocks learns at its own rate.
    """
    first = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    last = []
    if layer_decay != 1.0:

        def scaled(updates, params=None):
            return jax.tree.map(jnp.multiply, updates, layer_scales(updates, layer_decay, depth))

        last = [optax.stateless(scaled)]
    return optax.chain(
        *first,
        scale_by_adam(b1, b2, eps),
        optax.add_decayed_weights(weight_decay, mask=lambda p: decay_mask(p, decay_on)),
        *last,
        keep_state(optax.scale_by_learning_rate(schedule)),
    )


def lars(
    schedule: Schedule,
    *,
    weight_decay: float = 0.0,
    momentum: float = 0.9,
    trust_coefficient: float = 0.001,
    clip_norm: float = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """LARS as in MAE's linear probe: trust ratio and weight decay only where there is more than one
    axis, and the learning rate outside the momentum (optax.lars has it inside)."""

    def matrices(params):
        return jax.tree.map(lambda p: p.ndim > 1, params)

    first = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    return keep_state(
        optax.chain(
            *first,
            optax.add_decayed_weights(weight_decay, mask=matrices),
            optax.masked(optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient), matrices),
            optax.trace(decay=momentum),
            optax.scale_by_learning_rate(schedule),
        )
    )


def only(
    tx: optax.GradientTransformation, trained: Callable[[str], bool]
) -> optax.GradientTransformationExtraArgs:
    """`tx` on the parameters whose top-level name is `trained`; the rest, and running statistics,
    stay as they are and cost no optimiser memory."""

    def labels(params):
        def label(path, _):
            keys = _keys(path)
            return "train" if trained(keys[0]) and keys[-1] not in STATISTICS else "keep"

        return jax.tree_util.tree_map_with_path(label, params)

    return optax.partition({"train": tx, "keep": optax.set_to_zero()}, labels)
