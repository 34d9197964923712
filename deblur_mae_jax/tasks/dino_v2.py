"""Self-distillation as in DINOv2 (Oquab et al. 2023): the student predicts what the teacher, its moving average, sees.

Three terms: of the cls tokens of different crops of an image (DINO, Caron et al. 2021), of masked patches (iBOT, Zhou
et al. 2022), and one that keeps the cls tokens of a batch apart (KoLeo, Sablayrolles et al. 2019). With a degradation
the student sees degraded crops and the teacher clean ones.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import siamese, vit_dino
from deblur_mae_jax.tasks import losses
from deblur_mae_jax.tasks.contract import Kind, Task
from deblur_mae_jax.tasks.moco_v3 import schedule

KIND = Kind("distill", axes=(2,), evaluator="pretraining")
STUDENT_TEMPERATURE = 0.1


def make(
    model: Any,
    *,
    momentum: float = 0.992,
    teacher_temperature: tuple[float, float] = (0.04, 0.07),
    warmup_share: float = 0.06,
    mask_probability: float = 0.5,
    mask_range: tuple[float, float] = (0.1, 0.5),
    ibot_weight: float = 1.0,
    koleo_weight: float = 0.1,
) -> Task:
    """DINO's, iBOT's and KoLeo's losses.

    momentum: weight of the teacher's own parameters in its update, at the start; it rises to 1.
    teacher_temperature: at the start, and after `warmup_share` of the run.
    mask_probability: probability that patches of a large crop are masked.
    mask_range: range of the share of its patches that are.
    ibot_weight, koleo_weight: of the terms; DINO's has weight 1.

    The prototypes of the teacher are balanced over the global batch by Sinkhorn and Knopp's iteration. With
    accumulation they are balanced over one share.
    The loss takes `inputs`, `targets`, `other_inputs`, `other_targets` `(B, H, W, C)`, two large crops of every image,
    `local_inputs` `(B, N, s, s, C)`, small ones, and for a conditioned model `level`, `other_level` and `local_level`.
    In its `out`, `accuracy` `(B,)` is the share of the two crops whose cls token is nearest to the teacher's of the
    other crop.
    """
    _check({"momentum": momentum, "warmup_share": warmup_share, "mask_probability": mask_probability},
           {"ibot_weight": ibot_weight, "koleo_weight": koleo_weight}, teacher_temperature, mask_range)  # fmt: skip

    def loss(params, batch, keys):
        training, progress = "progress" in batch, batch.get("progress", 1.0)  # evaluations take the later temperature
        keep = schedule(momentum, progress) if training else 1.0
        teacher = siamese.moved(params["teacher"], params["student"], keep)
        variables = {"params": {"student": params["student"], "teacher": jax.lax.stop_gradient(teacher)}}
        temperature = jnp.interp(
            progress / max(warmup_share, 1e-9), jnp.array([0.0, 1.0]), jnp.array(teacher_temperature)
        )
        both = {name: _stacked(batch, name) for name in ("inputs", "targets", "level")}
        clean = None if both["level"] is None else jnp.ones_like(both["level"])
        theirs, goals, of_patches = _of_views(
            lambda x, level: model.apply(variables, x, level=level, method=model.target), both["targets"], clean
        )
        own = {name: jnp.stack([_folded(keys[name], view) for view in range(2)], 1) for name in ("mask", "drop_path")}
        masks = jax.vmap(lambda key: draw_masks(key, model.num_patches, mask_probability, mask_range), 1)(own["mask"])
        cls, out = _of_views(
            lambda x, level, mask, key: model.apply(variables, x, level=level, mask=mask, drop_path_keys=key),
            both["inputs"], both["level"], masks.swapaxes(0, 1), own["drop_path"] if training else None,
        )  # fmt: skip

        goals = _balanced(goals, temperature)
        terms = [_cross(out["prototypes"][1 - view], goals[view]) for view in range(2)]
        terms += _of_small_crops(model, variables, batch, keys["drop_path"] if training else None, goals)
        total = sum(terms) / len(terms)
        each = _cross(out["of_patches"], _balanced(of_patches, temperature, masks))
        total += ibot_weight * ((each * masks).sum(axis=2) / jnp.maximum(masks.sum(axis=2), 1.0)).mean(axis=0)
        total += koleo_weight * sum(losses.koleo(view) for view in cls)
        right = (losses.nearest(cls[0], theirs[1]) + losses.nearest(cls[1], theirs[0])) / 2
        return total, {"assign": {"teacher": jax.lax.stop_gradient(teacher)}, "accuracy": right}

    return Task(loss, trains=lambda name: not name.startswith(vit_dino.TEACHER), begin=_begin)


def _begin(params: Any) -> Any:
    """The teacher starts as a copy of the student."""
    return params | {"teacher": jax.tree.map(jnp.array, params["student"])}


def _check(shares, weights, temperatures, mask_range):
    """Raise `UserError` for settings that are impossible."""
    for name, value in shares.items():
        if not 0 <= value <= 1:
            raise UserError(f"config.task.{name}={value} must be in [0, 1]")
    if len(temperatures) != 2 or min(temperatures) <= 0:
        raise UserError(f"config.task.teacher_temperature={temperatures} must be two numbers above 0")
    if len(mask_range) != 2 or not 0 <= mask_range[0] <= mask_range[1] <= 1:
        raise UserError(f"config.task.mask_range={mask_range} must be a range in [0, 1]")
    for name, value in weights.items():
        if value < 0:
            raise UserError(f"config.task.{name}={value} must be 0 or greater")


def _of_small_crops(model: Any, variables: Any, batch: Any, keys: Any, goals: jax.Array) -> list[jax.Array]:
    """The cross-entropy `(B,)` of every small crop with the teacher's assignment of both large ones."""
    if "local_inputs" not in batch:
        return []
    small = batch["local_inputs"].shape[1]
    own = None if keys is None else jnp.stack([_folded(keys, 2 + number) for number in range(small)], 1)
    local = _of_views(
        lambda x, level, key: model.apply(variables, x, level=level, drop_path_keys=key, method=model.local),
        batch["local_inputs"], batch.get("local_level"), own,
    )  # fmt: skip
    return [term for goal in goals for term in _cross(local, goal)]


def _stacked(batch: dict[str, jax.Array], name: str) -> jax.Array | None:
    """An entry of both large crops `(B, 2, ...)`, or None."""
    return jnp.stack([batch[name], batch[f"other_{name}"]], axis=1) if name in batch else None


def _of_views(function: Any, *arguments: Any) -> Any:
    """Apply a function of a batch to `(B, V, ...)`, all views of an image at once. Returns arrays `(V, B, ...)`.

    `jax.vmap` over the views would make a gradient of every kernel for each view. The images stay the leading axis, so
    that devices which share a batch keep their own images.
    """
    B, V = arguments[0].shape[:2]
    out = function(*jax.tree.map(lambda x: x.reshape(B * V, *x.shape[2:]), arguments))
    return jax.tree.map(lambda x: x.reshape(B, V, *x.shape[1:]).swapaxes(0, 1), out)


def _folded(keys: jax.Array, number: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, number)


def _balanced(scores: jax.Array, temperature: Any, weight: jax.Array | None = None) -> jax.Array:
    """`sinkhorn` over all leading axes of `(..., K)`."""
    flat = None if weight is None else weight.reshape(-1)
    return sinkhorn(scores.reshape(-1, scores.shape[-1]), temperature, flat).reshape(scores.shape)


def draw_masks(keys: jax.Array, patches: int, probability: float, between: tuple[float, float]) -> jax.Array:
    """Masks `(B, patches)` float32: of some images a random share of the patches, of the others none."""

    def draw(key: jax.Array) -> jax.Array:
        k_any, k_share, k_noise = jax.random.split(key, 3)
        share = jax.random.uniform(k_share, minval=between[0], maxval=between[1])
        share = jnp.where(jax.random.bernoulli(k_any, probability), share, 0.0)
        rank = jnp.argsort(jnp.argsort(jax.random.uniform(k_noise, (patches,))))
        return (rank < jnp.round(share * patches)).astype(jnp.float32)

    return jax.vmap(draw)(keys)


def sinkhorn(
    scores: jax.Array, temperature: Any, weight: jax.Array | None = None, iterations: int = 3
) -> jax.Array:  # fmt: skip
    """Assign examples to prototypes so that all prototypes are used alike (Caron et al. 2020).

    scores: similarities `(N, K)`.
    temperature: divides them.
    weight: `(N,)`, 1 for the examples that count; None: all do.

    Returns `(N, K)`; rows of examples that count sum to 1.
    """
    counts = jnp.ones(len(scores)) if weight is None else weight
    total, K = jnp.maximum(counts.sum(), 1.0), scores.shape[1]
    scaled = scores.astype(jnp.float32) / temperature
    top = jnp.max(jnp.where(counts[:, None] > 0, scaled, -jnp.inf))
    share = jnp.exp(jnp.minimum(scaled - jnp.where(jnp.isfinite(top), top, 0.0), 0.0)) * counts[:, None]
    share = share / jnp.maximum(share.sum(), 1e-30)
    for _ in range(iterations):
        share = share / jnp.maximum(share.sum(axis=0, keepdims=True), 1e-30) / K
        share = share / jnp.maximum(share.sum(axis=1, keepdims=True), 1e-30) / total
        share = share * counts[:, None]
    return jax.lax.stop_gradient(share * total)


def _cross(scores: jax.Array, goal: jax.Array) -> jax.Array:
    """Cross-entropy of the student's similarities `(..., K)` with the teacher's assignment, `(...)`."""
    return -(goal * jax.nn.log_softmax(scores / STUDENT_TEMPERATURE)).sum(axis=-1)
