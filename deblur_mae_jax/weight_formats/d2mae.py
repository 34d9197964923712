"""Any ViT of this library, with the network in one file of plain PyTorch beside the weights."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deblur_mae_jax.weight_formats import torch_calls, vit
from deblur_mae_jax.weight_formats.contract import Converted, Opened, State
from deblur_mae_jax.workdir import run_folder

NAME = "d2mae"
TITLE = "PyTorch alone"
MODELS = vit.MODELS
NEEDS: tuple[str, ...] = ("torch",)
WEIGHTS = "d2mae.safetensors"
# The network that searches the blur of a classifier's images, as `modeling_d2mae.py` reads it.
SEARCHER = ("searcher.safetensors", "searcher.json")
infer: Callable[..., Any] = vit.infer
to_ours: Callable[[State], State] = vit.checked


def matches(names: set[str]) -> bool:
    """A ViT with parameters that code a blur level."""
    return vit.plain(names) and vit.has_levels(names)


def from_ours(network: dict[str, Any], state: State) -> Converted:
    """The state dict, unchanged."""
    return Converted(state)


def opens_with(network: dict[str, Any]) -> dict[str, Any]:
    """The class D2MAE in the Python file beside the weights."""
    return {"library": "torch", "class": "D2MAE", "file": torch_calls.MODELING.name}


def companions(folder: Path, network: dict[str, Any], opens: dict[str, Any], weights: str) -> None:
    """Write `config.json` and the file that defines the network in PyTorch."""
    run_folder.write_json(folder / "config.json", network)
    shutil.copyfile(torch_calls.MODELING, folder / torch_calls.MODELING.name)


def snippet(certificate: dict[str, Any]) -> list[str]:
    """Python that loads the network and applies it to an image."""
    network, name = certificate["network"], certificate["file"]["name"]
    lines = ["import torch", "from modeling_d2mae import load"]
    lines.append('model = load(".")' if name == WEIGHTS else f'model = load(".", "{name}")')
    lines.append("image = torch.from_numpy(array)  # (H, W), gray levels 0..255")
    if network["sigmas"] and network["task"] != "classify":
        lines.append("level, errors = model.search(image)")
    if network["task"] == "classify" and network["classes"]:
        if network["degradation"] == "other":
            lines.append(f"# degraded: the image after {network['degrade']}, (H, W), gray levels 0..255")
            return [*lines, "probabilities = model.classify(model.view(image, degraded=degraded)).softmax(1)[0]"]
        return [*lines, "probabilities = model.predict(image)"]
    seen = ", level" if network["sigmas"] else ""
    if network["degradation"] == "other":
        lines.append(f"# degraded: the image after {network['degrade']}, (H, W), gray levels 0..255")
        seen = ", degraded=degraded"
    given = ", level" if network["conditioning"] != "none" else ""
    call = "features" if network["task"] == "classify" else "encode"
    lines.append(f"out = model.{call}(model.view(image{seen}){given})")
    return lines


def open(file: Path, certificate: dict[str, Any]) -> Opened:
    """Open it with the Python file beside the weights."""
    network = certificate["network"]
    model = torch_calls.standalone(file, torch_calls.MODELING).D2MAE(network)
    model.load_state_dict(torch_calls.state_of(file), strict=True)
    model.eval()
    layers = {n: layer for n, layer in model.named_modules() if torch_calls.is_layer(n)}
    if network["task"] == "classify":
        functions = {"features": model.features} | ({"logits": model.classify} if network["classes"] else {})
    else:
        functions = {
            "tokens": model.encode,
            "reconstruct": lambda x, level, ratio, noise: model(x, level, ratio, noise)[0],
        }
    return Opened(model, layers=layers, **torch_calls.calls(**functions))
