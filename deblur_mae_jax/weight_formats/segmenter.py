"""Segmenters of images: a PyTorch file of this library, with timm's or ConvMAE's names for the encoder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from deblur_mae_jax import config as fields
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.weight_formats import convmae, timm, timm_backbones, timm_beit, torch_calls
from deblur_mae_jax.weight_formats.contract import WEIGHTS, Converted, Inferred, Opened, State, Weights
from deblur_mae_jax.workdir import run_folder

NAME = "segmenter"
TITLE = "PyTorch and timm, with modeling_segmenter.py beside the weights"
MODELS = ("segmenter",)
NEEDS = ("torch", "timm")
MODELING = torch_calls.STANDALONE / "modeling_segmenter.py"
PREFIX = "encoder."
# The format of each encoder.
_ENCODERS: dict[str, Any] = {
    "resnet": timm_backbones, "convnext": timm_backbones, "swin2d": timm_backbones, "vit": timm, "beit": timm_beit,
    "convvit": convmae,
}  # fmt: skip


def matches(names: set[str]) -> bool:
    """Whether there are an encoder and the last convolution of a decoder."""
    return "decode_head.out.weight" in names and any(name.startswith(PREFIX) for name in names)


def to_ours(state: State) -> State:
    """The same names."""
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def infer(weights: Weights) -> Inferred:
    """The config and classes of the header. Raises `UserError` for a file of other code."""
    if "config" not in weights.header:
        raise UserError("a segmenter is read from an export of this library, whose header describes it")
    saved = fields.upgrade(json.loads(weights.header["config"]))
    return Inferred(saved, json.loads(weights.header.get("classes", "[]")), [])


def from_ours(network: dict[str, Any], state: State) -> Converted:
    """As it is. Raises `UserError` if the format of the encoder cannot hold it."""
    inner = {name.removeprefix(PREFIX): value for name, value in state.items() if name.startswith(PREFIX)}
    format = _ENCODERS[network["encoder"]["model"]]
    try:
        format.from_ours(network["encoder"], inner)
    except UserError as error:
        reason = str(error).removeprefix(f"--format={format.NAME}: ")
        raise UserError(f"--format={NAME}: the encoder is that of {format.NAME}: {reason}") from error
    return Converted(state)


def opens_with(network: dict[str, Any]) -> dict[str, Any]:
    """The class Segmenter in the Python file beside the weights, and how timm makes the encoder."""
    opens = {"library": "torch", "class": "Segmenter", "file": MODELING.name}
    return opens if network["encoder"]["model"] == "convvit" else opens | {"encoder": _timm(network["encoder"])}


def _timm(encoder: dict[str, Any]) -> dict[str, Any]:
    """Name and arguments of timm's model, without a classifier."""
    opens = _ENCODERS[encoder["model"]].opens_with(encoder)
    return {"model": opens["model"], "arguments": opens["arguments"] | {"num_classes": 0}}


def _config(network: dict[str, Any]) -> dict[str, Any]:
    """What the Python file needs to know."""
    encoder, kind = network["encoder"], network["encoder"]["model"]
    depth = encoder.get("depth")
    quarters = [max(1, round(depth * quarter / 4)) - 1 for quarter in range(1, 5)] if depth else []
    return {
        "kind": kind, "encoder": encoder if kind == "convvit" else _timm(encoder), "decoder": network["decoder"],
        "decoder_width": network["decoder_width"], "channels": network["channels"],
        "num_classes": network["num_classes"], "classes": network["classes"],
        # Maps of timm's ResNet begin with that of its stem.
        "indices": {"resnet": [1, 2, 3, 4], "vit": quarters, "beit": quarters}.get(kind, [0, 1, 2, 3]),
    }  # fmt: skip


def companions(folder: Path, network: dict[str, Any], opens: dict[str, Any], weights: str) -> None:
    """Write `config.json` and the files that define the network in PyTorch."""
    run_folder.write_json(folder / "config.json", _config(network))
    for path in (MODELING, *([convmae.MODELING] if network["encoder"]["model"] == "convvit" else [])):
        shutil.copyfile(path, folder / path.name)


def snippet(certificate: dict[str, Any]) -> list[str]:
    """Python that loads the network and applies it."""
    name = certificate["file"]["name"]
    return [
        "import torch",
        "from modeling_segmenter import load",
        'model = load(".")' if name == WEIGHTS else f'model = load(".", "{name}")',
        "# images (B, C, H, W), normalised as above",
        "labels = model(images).argmax(1)  # 0 is background",
    ]


def open(file: Path, certificate: dict[str, Any]) -> Opened:
    """Open it with the Python file beside the weights; every name and shape must match."""
    beside = file.with_name(MODELING.name)
    place = beside if beside.exists() else MODELING
    model = torch_calls.modeling(place).Segmenter(_config(certificate["network"]), place.parent)
    model.load_state_dict(torch_calls.state_of(file), strict=True)
    model.eval()
    return Opened(model, **torch_calls.calls(logits=lambda x, level: model(x).movedim(1, -1)))
