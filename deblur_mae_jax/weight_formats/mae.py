"""The names of MAE's and DeblurringMIM's code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.weight_formats import d2mae, torch_calls, vit
from deblur_mae_jax.weight_formats.contract import Converted, Opened, State

NAME = "mae"
TITLE = "the code of MAE and DeblurringMIM"
MODELS = vit.MODELS
NEEDS = ("torch",)
infer: Callable[..., Any] = vit.infer
to_ours: Callable[[State], State] = vit.checked
opens_with: Callable[..., Any] = d2mae.opens_with
open: Callable[[Path, dict[str, Any]], Opened] = d2mae.open


def matches(names: set[str]) -> bool:
    """A ViT with MAE's decoder or its norm after pooling."""
    return vit.plain(names) and not vit.has_levels(names) and vit.has_decoder(names)


def from_ours(network: dict[str, Any], state: State) -> Converted:
    """As it is."""
    vit.without_levels(network, NAME)
    if "head.0.running_mean" in state:
        state = state | {"head.0.num_batches_tracked": np.zeros((), np.int64)}
    return Converted(state)


def companions(folder: Path, network: dict[str, Any], opens: dict[str, Any], weights: str) -> None:
    """Write no other files, because MAE's code defines the network."""


def snippet(certificate: dict[str, Any]) -> list[str]:
    """With MAE's code."""
    name = certificate["file"]["name"]
    inner = "" if name.endswith(".safetensors") else '["model"]'
    classify = certificate["network"]["task"] == "classify"
    model = "models_vit.VisionTransformer" if classify else "models_mae.MaskedAutoencoderViT"
    return [
        "import torch",
        *torch_calls.read_lines(name),
        f"model = {model}(...)  # of MAE's code, with the sizes above",
        f"model.load_state_dict(state{inner}, strict=True)",
    ]
