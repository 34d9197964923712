"""AdamW and the learning-rate schedule of MAE (He et al. 2022, table 8, and its code)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Schedule = Callable[[Any], Any]


def mae_learning_rate(
    epoch: Any, lr: float, min_lr: float, warmup_epochs: float, epochs: float
) -> jax.Array:
    """Linear warm-up from 0, then half a cosine to `min_lr`; `epoch` may be a fraction."""
    epoch = jnp.asarray(epoch, jnp.float32)
    warm = lr * epoch / max(warmup_epochs, 1e-12)
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-12)
    cosine = min_lr + (lr - min_lr) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(epoch < warmup_epochs, warm, cosine)


def is_decayed(path: tuple[Any, ...], value: Any) -> bool:
    """MAE's rule: every parameter with more than one axis, so also cls, mask and blur tokens."""
    return value.ndim > 1 and getattr(path[-1], "key", None) != "bias"


def decay_mask(params: Any) -> Any:
    """Tree of booleans: where weight decay acts."""
    return jax.tree_util.tree_map_with_path(is_decayed, params)


def adamw(
    schedule: Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.05,
    clip_norm: float = 0.0,
) -> optax.GradientTransformation:
    """AdamW as PyTorch defines it, with MAE's decay rule and optional clipping by global norm."""
    steps = [optax.clip_by_global_norm(clip_norm)] if clip_norm else []
    return optax.chain(
        *steps,
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay, mask=decay_mask),
        optax.scale_by_learning_rate(schedule),
    )
