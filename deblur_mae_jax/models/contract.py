"""What a network's file holds, and how its parameters are treated. One file per network.

A file `deblur_mae_jax/models/<name>.py` is chosen by `config.model.name=<name>`. It has

    KINDS            kinds of task it serves: "reconstruct", "pretext", "classify", "segment"
    AXES             2 for 2-D images, 3 for volumes
    Model(variant, **fields) -> flax.linen.Module
                     the network; `fields` are those of `config.model`, and `image_size`, `num_levels` (of blur) and,
                     for a task with labels, `num_classes`. Raises `UserError` for values no network can be built from
    flops_per_image(model, mask_ratio, training=True) -> float
                     operations of its matrix products and convolutions, 2 per multiply-add
    RULES            how its parameters are treated: a `Rules`

Every network is called with keywords after the images, `model.apply(variables, images, level=..., ...)`, and returns
`(prediction, out)`, where `out` is a dict of what else it computes. Every network takes `level` `(B,)`, the blur
level of each image, and ignores it where it is not conditioned. By kind, for images `(B, *space, C)`:

    reconstruct, 2-D  also takes noise `(B, L)` and mask_ratio; predicts patches `(B, L, P*P*C)`;
                      out has `mask` `(B, L)`, 1 = masked. Fields: `patch_size`, `in_chans`, `grid` (patches per side)
    reconstruct, 3-D  also takes disrupt and masked; predicts `(B, D, H, W, C)`;
                      out has `hidden`, the states of the stages
    pretext           predicts the rebuilt volume, or None; out has `rotation` `(B, 4)` and `embedding` `(B, E)`
    classify          also takes mix, drop_path_keys, train and frozen; predicts logits `(B, K)`;
                      out may have `assign`, new values of running statistics. Field: `num_classes`
    segment           predicts logits `(B, *space, K)`

`features(images, level, ...)`, a method of the networks that `encode` and classification reports use, gives `(B, D)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Parameters by name, "blocks_0/attn/qkv/kernel".
Flat = dict[str, Any]


class Adapted(NamedTuple):
    """What a network can take of another network's parameters.

    weights: the parameters, by name, resized where the network needs it.
    optional: whether a parameter may start anew when the other network lacks it.
    resized: what was resized, for the user.
    """

    weights: Flat
    optional: Callable[[str], bool]
    resized: str = ""


def adapt_by_name(weights: Flat, needed: Flat, before: Any, model: Any) -> Adapted:
    """Take the parameters as they are; every one the network needs must be there."""
    return Adapted(weights, lambda name: False)


class Rules(NamedTuple):
    """How the parameters of a network are treated.

    undecayed: names of tokens and tables that weight decay on "weights" leaves out.
    layers: `model -> (count, layer)`, for layer-wise learning rates: the number of layers above the first, and the
        layer, 0 to count, of a top-level name. None: the network has no such layers.
    heads: first letters of the names that are only taken from a network with the same classes.
    encodes: whether a parameter belongs to the encoder.
    adapt: `(weights, needed, before, model) -> Adapted`: what `model`, with parameters `needed`, takes of the
        parameters `weights` of the network `before`.
    attends: whether `inference/attention_rollout.py` can follow attention through its `blocks`.
    tables: `model -> arrays`, the constants that a PyTorch state dict holds beside the parameters, by PyTorch's names.
    """

    undecayed: tuple[str, ...] = ()
    layers: Callable[[Any], tuple[int, Callable[[str], int]]] | None = None
    heads: tuple[str, ...] = ()
    encodes: Callable[[str], bool] = lambda name: True
    adapt: Callable[[Flat, Flat, Any, Any], Adapted] = adapt_by_name
    attends: bool = False
    tables: Callable[[Any], dict[str, np.ndarray]] = lambda model: {}
