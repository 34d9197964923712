"""DiffMAE with its decoder: a PyTorch file of this library beside the weights. No code of the authors exists."""

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

NAME = "diffmae"
TITLE = "PyTorch alone, with modeling_diffmae.py beside the weights"
MODELS = ("vit_diffmae",)
NEEDS = ("torch",)
MODELING = torch_calls.STANDALONE / "modeling_diffmae.py"


def matches(names: set[str]) -> bool:
    """Whether there is the layer that embeds noisy patches."""
    return "decoder_noisy_embed.weight" in names


def to_ours(state: State) -> State:
    """The same names."""
    return dict(state)


def infer(weights: Weights) -> Inferred:
    """The config of the header. Raises `UserError` for a file of other code."""
    if "config" not in weights.header:
        raise UserError("DiffMAE is read from an export of this library, whose header describes it")
    return Inferred(fields.upgrade(json.loads(weights.header["config"])), [], [])


def from_ours(network: dict[str, Any], state: State) -> Converted:
    """As it is."""
    return Converted(state)


def opens_with(network: dict[str, Any]) -> dict[str, Any]:
    """The class DiffMAE in the Python file beside the weights."""
    return {"library": "torch", "class": "DiffMAE", "file": MODELING.name}


def companions(folder: Path, network: dict[str, Any], opens: dict[str, Any], weights: str) -> None:
    """Write `config.json` and the files that define the network in PyTorch."""
    run_folder.write_json(folder / "config.json", network)
    for path in (MODELING, torch_calls.MODELING):
        shutil.copyfile(path, folder / path.name)


def snippet(certificate: dict[str, Any]) -> list[str]:
    """Python that loads the network and encodes an image."""
    name, level = certificate["file"]["name"], certificate["network"]["conditioning"] != "none"
    return [
        "import torch",
        "from modeling_diffmae import load",
        'model = load(".")' if name == WEIGHTS else f'model = load(".", "{name}")',
        "image = torch.from_numpy(array)  # (H, W), gray levels 0..255",
        f"tokens = model.encode(model.view(image, level=0){', 1' if level else ''})",
    ]


def open(file: Path, certificate: dict[str, Any]) -> Opened:
    """Open it with the Python file beside the weights; every name and shape must match."""
    model = torch_calls.standalone(file, MODELING).DiffMAE(certificate["network"])
    model.load_state_dict(torch_calls.state_of(file), strict=True)
    model.eval()
    functions: dict[str, Any] = {
        "tokens": model.encode,
        "reconstruct": lambda x, level, ratio, noise: model(x, level, ratio, noise)[0],
    }
    return Opened(model, **torch_calls.calls(**functions))
