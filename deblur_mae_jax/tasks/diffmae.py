"""DiffMAE (Wei et al. 2023, arXiv 2304.03283): denoise the masked patches, given the visible ones.

Each image draws a step of the diffusion, which says how noisy its masked patches are. With a degradation, the visible
patches are degraded and the masked ones are those of the clean image.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.models import masking, vit_diffmae
from deblur_mae_jax.tasks import losses
from deblur_mae_jax.tasks.contract import Kind, Task

KIND = Kind("reconstruct", axes=(2,), evaluator="pretraining")
SCHEDULES = ("linear", "cosine")
SAMPLERS = ("ddim", "ddpm")
# Range of the linear schedule (Ho et al. 2020, for 1,000 steps).
BETAS = (1e-4, 0.02)
MOST_KEPT = 0.02  # share of the variance of the signal after the last step


def kept(schedule: str = "linear", steps: int = 1000, rho: float = 0.8) -> np.ndarray:
    """Share of the signal's variance that is left after each step `(steps + 1,)`, from 1.

    schedule: "linear" (Ho et al. 2020) or "cosine" (Nichol and Dhariwal 2021).
    rho: exponent of the variances that are added in each step; below 1 they are larger.
    """
    if schedule == "cosine":
        place = (np.arange(steps + 1) / steps + 0.008) / 1.008
        curve = np.cos(place * np.pi / 2) ** 2
        beta = np.minimum(1 - curve[1:] / curve[:-1], 0.999)
    else:
        beta = np.linspace(*BETAS, steps)
    return np.concatenate([[1.0], np.cumprod(1 - beta**rho)]).astype(np.float32)


def _check(mask_ratio: float, names: tuple[str, str], numbers: dict[str, int], rho: float, model: Any) -> None:
    """Raise `UserError` for invalid settings."""
    if names[0] not in SCHEDULES:
        raise unknown("config.task.schedule", names[0], SCHEDULES)
    if names[1] not in SAMPLERS:
        raise unknown("config.task.sampler", names[1], SAMPLERS)
    for name, number in numbers.items():
        if number < 1:
            raise UserError(f"config.task.{name}={number} must be at least 1")
    if not 0 < rho <= 1:
        raise UserError(f"config.task.rho={rho} must be in (0, 1]")
    L = model.num_patches
    if not 0 < masking.num_kept(L, mask_ratio) < L:
        raise UserError(f"config.task.mask_ratio={mask_ratio} must leave some of the {L} patches visible, and not all")
    if not isinstance(model, vit_diffmae.ViTDiffMAE):
        raise UserError("config.task.name=diffmae needs config.model.name=vit_diffmae")


def make(
    model: Any,
    *,
    mask_ratio: float = 0.75,
    schedule: str = "linear",
    steps: int = 1000,
    rho: float = 0.8,
    sampler: str = "ddim",
    sampling_steps: int = 50,
    samples: int = 8,
) -> Task:
    """Predict the masked patches of the clean image from noisy ones; mean squared error over the masked patches.

    mask_ratio: share of the patches that are masked.
    schedule: of the noise, "linear" or "cosine".
    steps: of the diffusion.
    rho: exponent of the variances of the noise; below 1 there is more noise.
    sampler: how reports draw a reconstruction: "ddim" (without noise) or "ddpm".
    sampling_steps: steps of such a drawing.
    samples: drawings of each image whose mean is measured too.

    The loss takes `inputs`, `targets` `(B, H, W, C)` and, for a conditioned model, `level` `(B,)`. Its `out` has the
    patches `pred` and `target` `(B, L, P*P*C)`, `mask` and `counted` `(B, L)`.
    """
    numbers = {"steps": steps, "sampling_steps": sampling_steps, "samples": samples}
    _check(mask_ratio, (schedule, sampler), numbers, rho, model)
    signal = kept(schedule, steps, rho)
    if signal[-1] > MOST_KEPT:
        raise UserError(
            f"config.task.steps={steps} with config.task.schedule={schedule} and config.task.rho={rho} leave "
            f"{signal[-1]:.0%} of the signal after the last step, while a drawing starts from noise alone; use more "
            "steps, or schedule=cosine"
        )
    L = model.num_patches

    def masks(keys):
        return jax.vmap(lambda key: jax.random.uniform(key, (L,)))(keys["mask"])

    def loss(params, batch, keys):
        goal = masking.patchify(batch["targets"], model.patch_size)
        own = jax.vmap(jax.random.fold_in, (0, None))(keys["mask"], 1)
        step = jax.vmap(lambda key: jax.random.randint(key, (), 1, steps + 1))(own)
        added = jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, 2), goal.shape[1:]))(own)
        share = jnp.asarray(signal)[step][:, None, None]
        noisy = jnp.sqrt(share) * goal + jnp.sqrt(1 - share) * added
        pred, out = model.apply(
            {"params": params}, batch["inputs"], noise=masks(keys), mask_ratio=mask_ratio, level=batch.get("level"),
            noisy=noisy, step=step,
        )  # fmt: skip
        error = losses.patch_error(pred, goal, out["mask"])
        return error, {"pred": pred, "target": goal, "mask": out["mask"], "counted": out["mask"]}

    def sample(params, batch, keys, number=0):
        own = jax.vmap(jax.random.fold_in, (0, None))(keys["mask"], 3 + number)
        places = np.linspace(0, steps, min(sampling_steps, steps) + 1).round().astype(np.int32)
        return _drawn(model, {"params": params}, batch, (masks(keys), mask_ratio, own), (signal, places, sampler))

    return Task(loss, mask_ratio=mask_ratio, sample=sample, samples=samples)


def _drawn(model: Any, variables: Any, batch: Any, masked: Any, plan: Any) -> jax.Array:
    """Draw the masked patches from noise. Returns all patches `(B, L, P*P*C)`, the visible ones as they are.

    masked: (uniform draws `(B, L)`, share of masked patches, keys `(B,)`).
    plan: (share of the signal by step, the steps to visit from 0 up, the sampler).
    """
    (noise, ratio, keys), (signal, places, sampler) = masked, plan
    ids_keep, _, ids_restore = masking.random_masking(noise, ratio)
    ids_mask = jnp.argsort(noise, axis=1)[:, ids_keep.shape[1] :]
    states = model.apply(variables, batch["inputs"], ids_keep, batch.get("level"), method=model.states)
    patches = masking.patchify(batch["inputs"], model.patch_size)
    shape = (ids_mask.shape[1], patches.shape[2])
    normal = lambda number: jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(keys)

    def back(x, pair):
        now, then = pair
        step = jnp.full(len(x), now)
        clean = model.apply(variables, states, x, ids_mask, step, method=model.denoise)
        a, b = jnp.asarray(signal)[now], jnp.asarray(signal)[then]
        added = (x - jnp.sqrt(a) * clean) / jnp.sqrt(1 - a)
        fresh = (1 - b) / (1 - a) * (1 - a / b) if sampler == "ddpm" else 0.0  # variance of the noise drawn anew
        x = jnp.sqrt(b) * clean + jnp.sqrt(jnp.maximum(1 - b - fresh, 0.0)) * added
        return (x + jnp.sqrt(fresh) * normal(then + 1) if sampler == "ddpm" else x), None

    pairs = jnp.asarray(np.stack([places[:0:-1], places[-2::-1]], axis=1))
    drawn, _ = jax.lax.scan(back, normal(0), pairs)
    return vit_diffmae.assembled(patches, drawn, ids_keep, ids_restore)
