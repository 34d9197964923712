"""Convert our parameters to and from PyTorch's names and layouts; the only file that does so. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Container
from typing import Any

import numpy as np
from flax import traverse_util

from deblur_mae_jax.errors import UserError

# Parts that are lists in PyTorch.
_LISTS = (
    "blocks[1-3]?|enlarge|norms|head|fc|predictor|"
    "decoder|decoder_blocks|decoder_links|layers|layer[1-4]|stages|stem|downsample"
)
_NUMBERED = re.compile(rf"\b({_LISTS})_(\d+)")
_LEAF = {"kernel": "weight", "scale": "weight"}


def pytorch_name(path: tuple[str, ...]) -> str:
    """`("blocks_0", "attn", "qkv", "kernel")` -> `"blocks.0.attn.qkv.weight"`; likewise `head_1`, `stages_2`."""
    *modules, leaf = path
    name = ".".join([*modules, _LEAF.get(leaf, leaf)])
    return _NUMBERED.sub(r"\1.\2", name)


def from_pytorch_layout(value: np.ndarray, leaf: str) -> np.ndarray:
    """Linear (out, in) -> (in, out); convolution (O, I, *k) -> (*k, I, O); the rest unchanged."""
    if leaf != "kernel":
        return value
    if value.ndim == 2:
        return value.T
    return np.moveaxis(value, (1, 0), (-2, -1))


def to_pytorch_layout(value: np.ndarray, leaf: str) -> np.ndarray:
    """Inverse of `from_pytorch_layout`."""
    if leaf != "kernel":
        return value
    if value.ndim == 2:
        return value.T
    return np.moveaxis(value, (-2, -1), (1, 0))


def params_from_state_dict(
    state_dict: dict[str, np.ndarray], template: Any, tables: Container[str] = ()
) -> dict[str, Any]:
    """Fill the parameter tree `template` (arrays or shapes) from a PyTorch state dict.

    tables: names of constants that a state dict may also hold.
    Raises `UserError` naming missing, unexpected or misshapen entries.
    """
    flat = traverse_util.flatten_dict(template)
    names = {pytorch_name(path): path for path in flat}
    missing = sorted(set(names) - set(state_dict))
    extra = sorted(n for n in state_dict if n not in names and n not in tables)
    if missing or extra:
        raise UserError(f"state dict does not fit the model: missing {missing}, extra {extra}")
    out = {}
    for name, path in names.items():
        value = from_pytorch_layout(np.asarray(state_dict[name]), path[-1])
        if value.shape != tuple(flat[path].shape):
            raise UserError(f"state dict entry '{name}': shape {value.shape} does not fit {flat[path].shape}")
        out[path] = value
    return traverse_util.unflatten_dict(out)


def state_dict_from_params(params: Any) -> dict[str, np.ndarray]:
    """The trainable part of a PyTorch state dict (position tables are not parameters)."""
    flat = traverse_util.flatten_dict(params)
    return {pytorch_name(path): to_pytorch_layout(np.asarray(value), path[-1]) for path, value in flat.items()}
