"""Baselines of Disruptive Autoencoders: rotation, contrast, and both with reconstruction (Tang et al. 2022).

Each cube yields two views. A view is rotated by a multiple of 90 degrees in the plane of its last two axes. Then some
parts of it are replaced by noise, and others by parts of another cube. The network predicts the rotation
(cross-entropy), identifies the two views of one cube (NT-Xent over the global batch), and reconstructs the view before
the replacements (L1).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.tasks import losses
from deblur_mae_jax.tasks.contract import Kind, Task

KIND = Kind("pretext", axes=(3,), evaluator="pretraining")
# Range of the sides of a box, as shares of the cube's side; largest share of the cube that may be replaced.
BOX = (0.05, 0.25)
MAX_CUT = 0.3
MAX_BOXES = 200


def cut_out(key: jax.Array, cube: jax.Array, filling: jax.Array) -> jax.Array:
    """Replace random boxes of `cube` `(D, H, W, C)` by `filling`, until a share drawn from U(0, 0.3) is reached.

    Overlapping parts of the boxes count repeatedly.
    """
    shape = np.array(cube.shape[:3])
    k_share, k_boxes = jax.random.split(key)
    wanted = jax.random.uniform(k_share, maxval=MAX_CUT) * shape.prod()

    def box(number):
        k_size, k_place = jax.random.split(jax.random.fold_in(k_boxes, number))
        size = jnp.floor(jax.random.uniform(k_size, (3,), minval=BOX[0], maxval=BOX[1]) * shape)
        size = jnp.maximum(size, 1)
        start = jnp.floor(jax.random.uniform(k_place, (3,)) * (shape - size + 1))
        axes = (jnp.arange(side) for side in cube.shape[:3])
        inside = tuple((x >= s) & (x < s + n) for x, s, n in zip(axes, start, size, strict=True))
        return tuple(x.astype(jnp.float32) for x in inside), size.prod()

    # Draw the maximal number of boxes and use those that are needed. A loop until the last cube of the batch is done
    # would need communication between the devices after each box.
    (d, h, w), volume = jax.vmap(box)(jnp.arange(MAX_BOXES))
    needed = jnp.cumsum(volume) - volume < wanted
    boxes = jnp.einsum("nd,nh,nw->dhw", d * needed[:, None], h, w)
    return jnp.where(boxes[..., None] > 0, filling, cube)


def views(keys: jax.Array, cubes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One view of each of the `cubes` `(B, D, H, W, C)`, H equal to W, with one key per cube.

    Returns the views with replaced boxes, the views without, and the number of quarter turns `(B,)`.
    """

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
    """Raise `UserError` for invalid weights of the three losses."""
    for name, value in weights.items():
        if value < 0:
            raise UserError(f"config.task.{name}={value} must be 0 or greater")
    _, second, third = sides.of(model.image_size, 3)
    if second != third:
        raise UserError(
            "config.task.name=pretext turns crops by 90 degrees in the plane of the last two axes, which need equal "
            f"sides; config.image_size={model.image_size}"
        )
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
    """Rotation, contrast and reconstruction of two views of every cube.

    rotation_weight: weight of the rotation loss. 0: off.
    contrast_weight: weight of the contrastive loss. 0: off.
    reconstruction_weight: weight of the reconstruction loss. 0: off.
    temperature: temperature of the contrastive loss.

    The loss takes `targets` `(B, D, H, W, C)`. Its `out` has `pred`, `clean` and `degraded` of the first views, and
    `reconstruction`, `contrast` and `rotation_accuracy` `(B,)`, 1 for a correctly predicted rotation.
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
        # Place the two views of a cube next to each other. All first views before all second views would move cubes
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
