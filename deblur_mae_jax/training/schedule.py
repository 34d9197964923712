"""Learning-rate schedules: those of MAE, timm (DAE's code), MONAI and SimMIM, and the choice among them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from deblur_mae_jax.errors import UserError, unknown

# step -> learning rate
Schedule = Callable[[Any], Any]
SCHEDULES = ("cosine", "constant", "timm", "by_epoch", "multistep")
# SimMIM's multi-step schedule: epoch 700 of 800, and the factor from there on.
MILESTONE, FACTOR = 7 / 8, 0.1


class Lengths(NamedTuple):
    """The length of a run and of its warm-up.

    steps: number of steps of the run.
    epochs: number of epochs of the run.
    warmup_epochs: number of epochs of the warm-up.
    per_epoch: number of steps per epoch.
    """

    steps: int
    epochs: float
    warmup_epochs: float
    per_epoch: float


def lengths(optim: ConfigDict, per_epoch: float) -> Lengths:
    """Compute the length of a run and of its warm-up. Raises `UserError`.

    optim: `config.optim`.
    per_epoch: number of steps per epoch.
    """
    warmup = optim.warmup_steps / per_epoch or optim.warmup_epochs
    if optim.steps:
        epochs = optim.steps / per_epoch
        return Lengths(optim.steps, epochs, min(warmup, 0.1 * epochs), per_epoch)
    if not 0 <= warmup < optim.epochs:
        given = f"steps={optim.warmup_steps}" if optim.warmup_steps else f"epochs={optim.warmup_epochs!r}"
        raise UserError(
            f"config.optim.warmup_{given} must be at least 0 and less than config.optim.epochs={optim.epochs:g}"
            + (f", {optim.epochs * per_epoch:g} steps" if optim.warmup_steps else "")
        )
    steps = max(1, math.ceil(optim.epochs * per_epoch))
    return Lengths(steps, steps / per_epoch, warmup, per_epoch)


def notes(optim: ConfigDict, length: Lengths) -> list[str]:
    """A line if the warm-up that the config asks for in steps was cut; one in epochs is that of a longer run."""
    steps = round(length.warmup_epochs * length.per_epoch)
    if steps >= optim.warmup_steps:
        return []
    return [
        f"the warm-up is {steps} steps, a tenth of the run, instead of config.optim.warmup_steps={optim.warmup_steps}"
    ]


def make(optim: ConfigDict, length: Lengths) -> Schedule:
    """Build the schedule that `config.optim` describes. Raises `UserError`."""
    lr = optim.base_lr * (optim.batch_size / 256 if optim.scale_lr else 1.0)
    steps, epochs, warmup, per_epoch = length

    def timm(step):
        return timm_learning_rate(step, lr, optim.min_lr, optim.warmup_lr, warmup * per_epoch, steps)

    def by_epoch(step):
        # MONAI counts whole epochs; with a fraction the last epoch of its warm-up would exceed the rate. The compiler
        # multiplies by 1 / per_epoch, which may end just below a whole number: half a step more does not.
        half = 0.5 if per_epoch == round(per_epoch) else 0.0
        return monai_learning_rate(jnp.floor((step + half) / per_epoch), lr, optim.min_lr, round(warmup), epochs)

    def constant(step):
        return mae_learning_rate(jnp.minimum(step / per_epoch, warmup), lr, lr, warmup, epochs)

    def cosine(step):
        return mae_learning_rate(step / per_epoch, lr, optim.min_lr, warmup, epochs)

    def multistep(step):
        return jnp.where(step < MILESTONE * steps, 1.0, FACTOR) * constant(step)

    schedules = dict(zip(SCHEDULES, (cosine, constant, timm, by_epoch, multistep), strict=True))
    if optim.schedule not in schedules:
        raise unknown("config.optim.schedule", optim.schedule, schedules)
    return schedules[optim.schedule]


def mae_learning_rate(epoch: Any, lr: float, min_lr: float, warmup_epochs: float, epochs: float) -> jax.Array:
    """Linear warm-up from 0, then half a cosine to `min_lr`; `epoch` may be a fraction."""
    epoch = jnp.asarray(epoch, jnp.float32)
    warm = lr * epoch / max(warmup_epochs, 1e-12)
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-12)
    cosine = min_lr + (lr - min_lr) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(epoch < warmup_epochs, warm, cosine)


def timm_learning_rate(
    step: Any, lr: float, min_lr: float, warmup_lr: float, warmup_steps: float, steps: float
) -> jax.Array:
    """timm's schedule, used by DAE's code: a linear warm-up from `warmup_lr` replaces the start of a cosine."""
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
    """MONAI's schedule, used by DAE's fine-tuning code. It changes once per epoch and starts at `warmup_lr`.

    The rate reaches `lr` in epoch `warmup_epochs - 1` and follows half a cosine from epoch `warmup_epochs` to `epochs`.
    """
    epoch = jnp.asarray(epoch, jnp.float32)
    warm = warmup_lr + (lr - warmup_lr) * epoch / max(warmup_epochs - 1, 1e-12)
    progress = (epoch - warmup_epochs) / max(epochs - warmup_epochs, 1e-12)
    cosine = min_lr + (lr - min_lr) * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return jnp.where(epoch < warmup_epochs, warm, cosine)
