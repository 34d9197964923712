"""The layout of Disruptive Autoencoders' pre-training checkpoints."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.weight_formats import swin
from deblur_mae_jax.weight_formats.contract import Converted, Opened, State

NAME = "dae"
TITLE = "the code of Disruptive Autoencoders"
MODELS = swin.MODELS
NEEDS = ("torch", "monai")
infer: Callable[..., Any] = swin.infer
companions: Callable[..., None] = swin.companions
snippet: Callable[..., list[str]] = swin.load_snippet


def matches(names: set[str]) -> bool:
    """Whether the names nest the encoder in lists of lists, as DAE's code does."""
    return any(name.startswith("encoder.layers1.0.0.") for name in names)


def to_ours(state: State) -> State:
    """Rename the encoder to `swinViT`."""
    out: State = {}
    for name, value in state.items():
        name = re.sub(r"^encoder\.layers(\d)\.0\.0\.", r"swinViT.layers\1.0.", name)
        out[re.sub(r"^encoder\.patch_embed\.", "swinViT.patch_embed.", name)] = value
    return swin.learned(out)


def from_ours(network: dict[str, Any], state: State) -> Converted:
    """Add the entries that DAE's code creates but never uses, with their initial values."""
    swin.require(network, NAME)
    state, left_out = swin.without_token(state)
    out: State = {}
    for name, value in swin.with_indices(state).items():
        name = re.sub(r"^swinViT\.layers(\d)\.0\.", r"encoder.layers\1.0.0.", name)
        name = re.sub(r"^swinViT\.patch_embed\.", "encoder.patch_embed.", name)
        name = re.sub(r"(encoder\.layers.*)\.mlp\.linear([12])\.", r"\1.mlp.fc\2.", name)
        out[name] = value
    width = state["swinViT.layers1.0.blocks.0.norm1.weight"].shape[0]
    out["encoder.mask_token"] = np.zeros((1, 1, width), np.float32)
    out["encoder.norm.weight"] = np.ones(16 * width, np.float32)
    out["encoder.norm.bias"] = np.zeros(16 * width, np.float32)
    return Converted(out, left_out)


def opens_with(network: dict[str, Any]) -> dict[str, Any]:
    """The Python file beside the weights, which works with any version of MONAI."""
    return swin.opens_with(network) | {"versions": "any, through modeling_swin.py; or DAE's own code"}


def open(file: Path, certificate: dict[str, Any]) -> Opened:
    """Open it with the Python file beside the weights."""
    return swin.open_model(file)
