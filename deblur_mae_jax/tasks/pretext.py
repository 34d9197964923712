"""Baselines of Disruptive Autoencoders: rotation, contrast, and both with reconstruction (Tang et al. 2022).

Two views of every cube: each is turned by a multiple of 90 degrees in the plane of its last two axes, then parts of it
are replaced by noise, then other parts by another cube's. The network tells the turn (cross-entropy), which two views
are of one cube (NT-Xent over the whole batch of all devices), and rebuilds the view as it was before the cuts (L1).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.tasks import losses
from deblur_mae_jax.tasks.contract import Kind, Task

KIND = Kind("pretext", axes=(3,), evaluator="reconstruction")
# Sides of a box that is cut out, as shares of the cube's; and how much of it may be cut at most.
BOX = (0.05, 0.25)
MAX_CUT = 0.3
MAX_BOXES = 200


def cut_out(key: jax.Array, cube: jax.Array, filling: jax.Array) -> jax.Array:
    """`cube` `(S, S, S, C)` with random boxes replaced by `filling`, until a share drawn from U(0, 0.3) was cut.

    The volumes of the boxes are added up, overlaps too.
    """
    side = cube.shape[0]
    k_share, k_boxes = jax.random.split(key)
    wanted = jax.random.uniform(k_share, maxval=MAX_CUT) * side**3
    axes = jnp.arange(side)

    def box(number):
        k_size, k_place = jax.random.split(jax.random.fold_in(k_boxes, number))
        size = jnp.floor(jax.random.uniform(k_size, (3,), minval=BOX[0], maxval=BOX[1]) * side)
        size = jnp.maximum(size, 1)
        start = jnp.floor(jax.random.uniform(k_place, (3,)) * (side - size + 1))
        inside = [(axes >= s) & (axes < s + n) for s, n in zip(start, size, strict=True)]
        return jnp.stack(inside).astype(jnp.float32), size.prod()

    # All boxes that there can be, then those that are needed: a loop that ends with the last cube of the batch
    # would have every device ask the others after each box.
    inside, volume = jax.vmap(box)(jnp.arange(MAX_BOXES))
    needed = jnp.cumsum(volume) - volume < wanted
    d, h, w = jnp.moveaxis(inside, 1, 0)
    boxes = jnp.einsum("nd,nh,nw->dhw", d * needed[:, None], h, w)
    return jnp.where(boxes[..., None] > 0, filling, cube)


def views(keys: jax.Array, cubes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(cut views, the same before the cuts, quarter turns `(B,)`) of `cubes` `(B, S, S, S, C)`, a key for each."""

    def turned(key, cube):
        turns = jax.random.randint(key, (), 0, 4)
        turn = lambda x, k: jnp.rot90(x, k, axes=(1, 2))
        return lax.switch(turns, [lambda x, k=k: turn(x, k) for k in range(4)], cube), turns

    def split(key):
        return jax.random.split(key, 4)

    k_turn, k_noise, k_first, k_second = jnp.moveaxis(jax.vmap(split)(keys), 1, 0)
    whole, turns = jax.vmap(turned)(k_turn, cubes)

    def noise(key, cube):
        drawn = jax.random.normal(key, cube.shape)
        return (drawn - drawn.min()) / (drawn.max() - drawn.min())

    cut = jax.vmap(cut_out)(k_first, whole, jax.vmap(noise)(k_noise, whole))
    other = jnp.roll(cut, 1, axis=0)  # the neighbour in the batch
    return jax.vmap(cut_out)(k_second, cut, other), whole, turns


def _check(model: Any, weights: dict[str, float]) -> None:
    """Raise `UserError` for weights of the three losses that cannot be right."""
    for name, value in weights.items():
        if value < 0:
            raise UserError(f"config.task.{name}={value} must be 0 or greater")
    if not any(weights.values()):
        raise UserError(f"config.task: nothing to learn, {', '.join(weights)} are all 0")
    if weights["reconstruction_weight"] and not model.rebuilds:
        raise UserError("config.task.reconstruction_weight needs config.model.rebuilds=True")


def make(
    model: Any,
    *,
    rotation_weight: float = 1.0,
    contrast_weight: float = 1.0,
    reconstruction_weight: float = 1.0,
    temperature: float = 0.5,
) -> Task:
    """Rotation, contrast and reconstruction of two views of every cube. A weight of 0 leaves a part out.

    temperature: of the contrast.

    The loss takes `targets` `(B, S, S, S, C)`. out: `pred` and what it is compared with, `clean` and `degraded`, of
    the first views; `reconstruction`, `contrast` and `rotation_accuracy` `(B,)`, 1 for a rotation that is recognised.
    """
    _check(model, {
        "rotation_weight": rotation_weight,
        "contrast_weight": contrast_weight,
        "reconstruction_weight": reconstruction_weight,
    })  # fmt: skip

    def loss(params, batch, keys):
        cubes = batch["targets"]
        B = len(cubes)
        twice = jax.vmap(jax.random.split)(keys["augment"])
        pairs = [views(twice[:, i], cubes) for i in range(2)]
        # The two views of a cube lie side by side: all first views before all second ones would move cubes
        # between devices.
        join = lambda *pair: jnp.stack(pair, axis=1).reshape(2 * B, *pair[0].shape[1:])
        apart = lambda x: jnp.moveaxis(x.reshape(B, 2, *x.shape[1:]), 1, 0)
        cut, whole, turns = jax.tree.map(join, *pairs)
        rebuilt, extra = model.apply({"params": params}, cut)
        logits, embeddings = extra["rotation"], extra["embedding"]
        scores = jax.nn.log_softmax(logits)
        surprise = -jnp.take_along_axis(scores, turns[:, None], axis=1)[:, 0]
        rotation = apart(surprise).mean(0)
        first, second = apart(embeddings)
        contrast = losses.nt_xent(first, second, temperature)
        error = jnp.zeros(B)
        if rebuilt is not None:
            error = jnp.abs(rebuilt - whole).mean((1, 2, 3, 4))
            error = apart(error).mean(0)
        total = rotation_weight * rotation + contrast_weight * contrast
        total = total + reconstruction_weight * error
        out = {
            "pred": None if rebuilt is None else apart(rebuilt)[0],
            "clean": apart(whole)[0],
            "degraded": apart(cut)[0],
            "mask": jnp.zeros((B, 1, 1, 1, 1)),
            "reconstruction": error,
            "contrast": contrast,
            "rotation_accuracy": apart((logits.argmax(1) == turns).astype(jnp.float32))[0],
        }
        return total, out

    return Task(loss)
