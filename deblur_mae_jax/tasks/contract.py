"""The interface of a task. Each task is one file.

`config.task.name=<name>` selects the file `deblur_mae_jax/tasks/<name>.py`. It has

    KIND             a `Kind`: the properties of the task that do not depend on the network
    make(model, **settings) -> Task
                     `settings` are the fields of `config.task` (without `name` and the degradation); a field that
                     `make` does not take is an error. A task with labels may take `class_weights`. Raises `UserError`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

# (params, batch, keys) -> (loss of each example (B,), out)
Loss = Callable[[Any, dict[str, jax.Array], dict[str, jax.Array]], tuple[jax.Array, dict]]


class Kind(NamedTuple):
    """The properties of a task that do not depend on the network.

    name: "reconstruct", "pretext", "contrast", "distill", "classify" or "segment". A network fits if it lists the name
        in `KINDS`.
    axes: spatial axes of the images that the task supports: 2, 3 or both.
    evaluator: name of the module in `deblur_mae_jax/evaluators` that evaluates the network during training.
    supervised: whether the task learns from labels, of images or of voxels.
    """

    name: str
    axes: tuple[int, ...]
    evaluator: str
    supervised: bool = False


class Task(NamedTuple):
    """A training task for one network.

    loss: `(params, batch, keys) -> (loss (B,), out)`. `batch` has `inputs` and `targets` `(B, *space, C)` float32, and
        further entries of the examples (`label`, `mask`, `modality`, `level`). `keys` has keys `(B,)` of every stream
        of `input_pipeline/keys.py`. `out` is a dict. Its entry `assign`, a part of the parameter tree, replaces those
        parameters (running statistics, momentum copies).
        In training, `batch` also has `progress`, the share of the run that is done, from 0 to 1.
    trains: `name -> bool`, whether the parameter "blocks_0/attn/qkv/kernel" is trained. Others need no memory of the
        optimiser. None: all are.
    begin: `params -> params`, applied before the first step, after weights were taken from `init_from`.
    mask_ratio: share of the patches that the encoder does not process, for counting operations.
    norm_pix_loss: whether the network predicts normalised patches.
    error: the error of a pixel in the loss, one of `losses.ERRORS`.
    sample: `(params, batch, keys, number) -> patches (B, L, P*P*C)`, of a generative network: a drawing of the image
        from its visible patches, which reports show. Such a network does not reconstruct unmasked images.
    samples: number of drawings whose mean is measured too.
    """

    loss: Loss
    trains: Callable[[str], bool] | None = None
    begin: Callable[[Any], Any] | None = None
    mask_ratio: float = 0.0
    norm_pix_loss: bool = False
    error: str = "squared"
    sample: Callable[..., jax.Array] | None = None
    samples: int = 0


def merged(params: Any, part: Any) -> Any:
    """Replace entries of `params` with those of the nested dict `part`, and add those that it lacks."""
    if not isinstance(part, dict):
        return part
    return {**(params or {}), **{name: merged((params or {}).get(name), value) for name, value in part.items()}}
