"""A ViT with UNETR's decoder: a PyTorch file of this library beside the weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from deblur_mae_jax import config as fields
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.weight_formats import torch_calls
from deblur_mae_jax.weight_formats.contract import WEIGHTS, Converted, Inferred, Opened, State, Weights
from deblur_mae_jax.workdir import run_folder

NAME = "segmenter"
TITLE = "PyTorch alone, with modeling_vit_unetr.py beside the weights"
MODELS = ("vit_unetr",)
NEEDS = ("torch",)
MODELING = torch_calls.STANDALONE / "modeling_vit_unetr.py"
# The linear layer within `Expand`, which is a linear layer itself in PyTorch.
_INNER = ".Dense_0."


def matches(names: set[str]) -> bool:
    """Whether there are a ViT and the last layer of the decoder."""
    return {"segmenter.out.weight", "patch_embed.proj.weight"} <= names


def to_ours(state: State) -> State:
    """Linear layers within a module of their own."""
    expands = ("segmenter.up_", "segmenter.skip_")
    return {
        _INNER.join(name.rsplit(".", 1)) if name.startswith(expands) and _INNER not in name else name: value
        for name, value in state.items()
    }


def infer(weights: Weights) -> Inferred:
    """The config and classes of the header. Raises `UserError` for a file of other code."""
    if "config" not in weights.header:
        raise UserError("a vit_unetr is read from an export of this library, whose header describes it")
    saved = fields.upgrade(json.loads(weights.header["config"]))
    return Inferred(saved, json.loads(weights.header.get("classes", "[]")), [])


def from_ours(network: dict[str, Any], state: State) -> Converted:
    """The inverse of `to_ours`."""
    return Converted({name.replace(_INNER, "."): value for name, value in state.items()})


def opens_with(network: dict[str, Any]) -> dict[str, Any]:
    """The class ViTUNETR in the Python file beside the weights."""
    return {"library": "torch", "class": "ViTUNETR", "file": MODELING.name}


def companions(folder: Path, network: dict[str, Any], opens: dict[str, Any], weights: str) -> None:
    """Write `config.json` and the files that define the network in PyTorch."""
    run_folder.write_json(folder / "config.json", network)
    for path in (MODELING, torch_calls.MODELING):
        shutil.copyfile(path, folder / path.name)


def snippet(certificate: dict[str, Any]) -> list[str]:
    """Python that loads the network and applies it."""
    name, level = certificate["file"]["name"], certificate["network"]["conditioning"] != "none"
    return [
        "import torch",
        "from modeling_vit_unetr import load",
        'model = load(".")' if name == WEIGHTS else f'model = load(".", "{name}")',
        "# images (B, C, H, W), normalised as above",
        *(["# level (B,): the number of the blur level of each image, counted from 1"] if level else []),
        f"labels = model(images{', level' if level else ''}).argmax(1)  # 0 is background",
    ]


def open(file: Path, certificate: dict[str, Any]) -> Opened:
    """Open it with the Python file beside the weights; every name and shape must match."""
    model = torch_calls.standalone(file, MODELING).ViTUNETR(certificate["network"])
    model.load_state_dict(torch_calls.state_of(file), strict=True)
    model.eval()
    return Opened(model, **torch_calls.calls(logits=lambda x, level: model(x, level).movedim(1, -1)))
