"""The interface of a network, and the rules for its parameters. Each network is one file.

`config.model.name=<name>` selects the file `deblur_mae_jax/models/<name>.py`. It has

    KINDS            kinds of task that it supports: "reconstruct", "pretext", "contrast", "distill", "classify",
                     "segment"
    AXES             2 for 2-D images, 3 for volumes
    Model(variant, **fields) -> flax.linen.Module
                     the network; `fields` are those of `config.model`, and `image_size` (`sides.Size`),
                     `num_levels` (of blur) and, for a task with labels, `num_classes`. Raises `UserError` for invalid
                     values
    flops_per_image(model, mask_ratio, training=True) -> float
                     operations of its matrix products and convolutions, 2 per multiply-add
    RULES            how its parameters are treated: a `Rules`, or a function `model -> Rules`

Every network takes keywords after the images, `model.apply(variables, images, level=..., ...)`, and returns
`(prediction, out)`, where `out` is a dict of further results. Every network accepts `level` `(B,)`, the blur level of
each image, and ignores it if it is not conditioned. By kind, for images `(B, *space, C)`:

    reconstruct, 2-D  also takes noise `(B, L)`, mask_ratio and drop_path_keys; predicts patches `(B, L, P*P*C)`;
                      out has `mask` `(B, L)`, 1 = masked. Fields: `in_chans`, `mask_size` (P), and `mask_grid`
                      (rows and columns of such patches)
    reconstruct, 3-D  also takes disrupt and masked; predicts `(B, D, H, W, C)`;
                      out has `hidden`, the states of the stages
    pretext           predicts the rebuilt volume, or None; out has `rotation` `(B, 4)` and `embedding` `(B, E)`
    contrast, 2-D     also takes train; predicts embeddings `(B, E)`; out has `assign`, new values of running statistics
    distill, 2-D      also takes mask `(B, L)` and drop_path_keys; predicts the student's features `(B, D)`; has methods
                      `local` and `target`
    classify          also takes mix, drop_path_keys, train, frozen and encoded; predicts logits `(B, K)`;
                      out may have `assign`, new values of running statistics. Field: `num_classes`
    segment           also takes train and drop_path_keys; predicts logits `(B, *space, K)`; out may have `assign`, and
                      `auxiliary`, logits of a second head

Networks that `encode` and the classification reports use have a method `features(images, level, ...)`, which returns
`(B, D)`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

# Parameters by name, "blocks_0/attn/qkv/kernel".
Flat = dict[str, Any]


class Adapted(NamedTuple):
    """The parameters that a network can load from another network.

    weights: the parameters by name, resized if necessary.
    optional: `name -> bool`, whether the parameter may be initialised anew if the other network lacks it.
    resized: a note on the resized parameters, for the user.
    """

    weights: Flat
    optional: Callable[[str], bool]
    resized: str = ""


def adapt_by_name(weights: Flat, needed: Flat, before: Any, model: Any) -> Adapted:
    """Load the parameters unchanged. None of the parameters that the network needs may be missing."""
    return Adapted(weights, lambda name: False)


class Rules(NamedTuple):
    """How the parameters of a network are treated.

    undecayed: names of tokens and tables without weight decay if `decay_on` is "weights".
    layers: `model -> (count, layer)`, for layer-wise learning rates. `count` is the number of layers above the first;
        `layer` maps a name to its layer, 0 to count. None: the network has no such layers.
    heads: prefixes of names that are loaded only from a network with the same classes.
    encodes: `name -> bool`, whether the parameter belongs to the encoder.
    adapt: `(weights, needed, before, model) -> Adapted`, the parameters that `model`, which needs `needed`, can load
        from the parameters `weights` of the network `before`.
    attends: whether `inference/attention_rollout.py` can trace attention through the network's `blocks`.
    stem: the kernel of the first layer `(h, w, channels, features)`, which is converted for another number of channels.
    shift: (parameter, sign) that takes the constant which this adds to its result.
    inner: `(weights, model) -> (weights, model, rules)`, for a network that contains an encoder which other networks
        have as their own: its weights under their names, the encoder, and the encoder's rules.
    tables: `model -> arrays`, the constants that a PyTorch state dict has in addition to the parameters, by PyTorch's
        names.
    """

    undecayed: tuple[str, ...] = ()
    layers: Callable[[Any], tuple[int, Callable[[str], int]]] | None = None
    heads: tuple[str, ...] = ()
    encodes: Callable[[str], bool] = lambda name: True
    adapt: Callable[[Flat, Flat, Any, Any], Adapted] = adapt_by_name
    attends: bool = False
    stem: str = "patch_embed/proj/kernel"
    shift: tuple[str, float] = ("patch_embed/proj/bias", 1.0)
    inner: Callable[[Flat, Any], tuple[Flat, Any, Any]] | None = None
    tables: Callable[[Any], dict[str, np.ndarray]] = lambda model: {}
