"""What a task's file holds. One file per task.

A file `deblur_mae_jax/tasks/<name>.py` is chosen by `config.task.name=<name>`. It has

    KIND             a `Kind`: what can be known of the task before there is a network
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
    """What can be known of a task before there is a network.

    name: "reconstruct", "pretext", "classify" or "segment"; the networks that list it in `KINDS` fit.
    axes: the images it is for: 2, 3 or both.
    evaluator: the file of `deblur_mae_jax/evaluators` that judges the network during training.
    supervised: whether it learns from labels, of images or of their voxels.
    """

    name: str
    axes: tuple[int, ...]
    evaluator: str
    supervised: bool = False


class Task(NamedTuple):
    """What a network is trained to do.

    loss: `(params, batch, keys) -> (loss (B,), out)`. batch: `inputs` and `targets` `(B, *space, C)` float32, and
        what else the examples have (`label`, `mask`, `modality`, `level`). keys: keys `(B,)` of every stream of
        `input_pipeline/keys.py`.
        out: a dict; `assign`, a part of the parameter tree, replaces those parameters (running statistics).
    trains: whether a parameter learns, by its top-level name. None: all do.
    mask_ratio: share of the patches that the encoder does not see, for counting operations.
    norm_pix_loss: whether the network predicts normalised patches.
    """

    loss: Loss
    trains: Callable[[str], bool] | None = None
    mask_ratio: float = 0.0
    norm_pix_loss: bool = False
