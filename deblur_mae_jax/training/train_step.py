"""The pure functions of training: the state, the step, and a hash of the parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from deblur_mae_jax.input_pipeline.keys import stream_keys
from deblur_mae_jax.sharding import Division
from deblur_mae_jax.tasks.contract import Task, merged


@flax.struct.dataclass
class TrainState:
    """Everything that changes during training. A non-finite loss sets `healthy` to false, which freezes the rest."""

    step: jax.Array
    params: Any
    opt_state: Any
    healthy: jax.Array


def create_state(params: Any, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), jnp.ones((), bool))


def _averaged(micro: Callable[[Any, Any], Any], batch: Any, accum: int) -> Any:
    """Mean of `micro(number, part of the batch)` over the accumulation steps."""
    first = jax.tree.map(lambda x: x[0], batch)
    if accum == 1:
        return micro(0, first)

    def add(carry, xs):
        return jax.tree.map(jnp.add, carry, micro(*xs)), None

    shapes = jax.eval_shape(micro, jnp.zeros((), jnp.int32), first)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    total, _ = jax.lax.scan(add, zero, (jnp.arange(accum), batch))
    return jax.tree.map(lambda x: x / accum, total)


def _of_trained(grads: Any, trains: Callable[[str], bool]) -> list[jax.Array]:
    name = lambda path: "/".join(str(part.key) for part in path)
    return [grad for path, grad in jax.tree_util.tree_leaves_with_path(grads) if trains(name(path))]


def make_train_step(
    prepare: Callable[[Any, Any, dict[str, jax.Array]], Any],
    task: Task,
    tx: optax.GradientTransformationExtraArgs,
    schedule: Callable[[jax.Array], jax.Array],
    seed: int,
    division: Division,
    *,
    total_steps: int = 1,
) -> Callable[[TrainState, Any, Any], tuple[TrainState, dict[str, jax.Array]]]:
    """Return `step(state, arrays, batch) -> (state, metrics)`.

    The leaves of `batch` are `(A, B / A, ...)`. The step averages gradients over the A accumulation steps, which gives
    the gradient of the whole batch. If a loss returns `assign`, a part of the parameter tree, the step averages it in
    the same way and replaces those entries (running statistics). After a non-finite loss or gradient, parameters and
    optimiser keep their values from before the step.

    task: what is trained. Gradients of parameters that it does not train count neither in `grad_norm` nor as a reason
        to stop.
    prepare: `(arrays, part of a batch, keys) -> input of the loss`.
    division: how parameters and optimiser are divided among the devices.
    total_steps: length of the run.
    tx: the optimiser; its update accepts `healthy` and keeps its state if that is false (`optimizer.keep_state`).
    """

    def loss_of(params, arrays, micro_batch, keys, progress):
        with jax.named_scope("input"):
            prepared = prepare(arrays, micro_batch, keys) | {"progress": progress}
        per_image, out = task.loss(division.whole(params), prepared, keys)
        return per_image.mean(), out.get("assign", {})

    def train_step(state, arrays, batch):
        accum, share = jax.tree.leaves(batch)[0].shape[:2]

        def micro(number, micro_batch):
            keys = stream_keys(seed, state.step, number * share + jnp.arange(share))
            progress, gradient = state.step / total_steps, jax.value_and_grad(loss_of, has_aux=True)
            (value, assign), grads = gradient(state.params, arrays, micro_batch, keys, progress)
            return value, assign, division.place_gradients(grads)

        value, assign, grads = _averaged(micro, batch, accum)
        with jax.named_scope("update"):
            grad_norm = optax.tree.norm(grads if task.trains is None else _of_trained(grads, task.trains))
        healthy = state.healthy & jnp.isfinite(value) & jnp.isfinite(grad_norm)
        with jax.named_scope("update"):
            updates, opt_state = tx.update(grads, state.opt_state, state.params, healthy=healthy)
            params = merged(optax.apply_updates(state.params, updates), assign)
            params = jax.tree.map(lambda new, old: jnp.where(healthy, new, old), params, state.params)
            params = division.place_params(params)
        metrics = {
            "loss": value,
            "grad_norm": grad_norm,
            "learning_rate": schedule(state.step),
            "healthy": healthy,
        }
        step = state.step + healthy.astype(jnp.int32)
        return TrainState(step=step, params=params, opt_state=opt_state, healthy=healthy), metrics

    return train_step


def fingerprint(tree: Any) -> jax.Array:
    """A 32-bit hash of every bit of a tree of arrays, the same on any number of devices.

    Sums of odd multiples of the raw words, modulo 2^32: integer addition does not depend on order.
    """
    total = jnp.zeros((), jnp.uint32)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        words = leaf.astype(jnp.uint32)
        if leaf.dtype.itemsize == 4:
            words = jax.lax.bitcast_convert_type(leaf, jnp.uint32)
        words = words.reshape(-1)
        word_number = jnp.arange(words.size, dtype=jnp.uint32)
        weight = (word_number * jnp.uint32(2654435761) + jnp.uint32(2 * number + 1)) | jnp.uint32(1)
        total = total * jnp.uint32(31) + (words * weight).sum(dtype=jnp.uint32)
    return total


def is_intact(restored: Any) -> bool:
    """Whether the parameters of a checkpoint have the hash that was noted when it was written, if there is one."""
    noted = restored.notes.get("fingerprint")
    return noted is None or int(jax.jit(fingerprint)(restored.state.params)) == noted
