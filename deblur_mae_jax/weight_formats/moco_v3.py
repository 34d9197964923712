"""The names of MoCo v3's code: encoder with projector, momentum encoder and predictor, of a ViT or a ResNet.

A network of SimCLR is written under these names too; it has one encoder and no predictor. The formats of timm hold the
encoder alone.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax import config as fields
from deblur_mae_jax.weight_formats import timm, timm_backbones, torch_calls, vit
from deblur_mae_jax.weight_formats.contract import Converted, Inferred, Opened, State, Weights

NAME = "moco_v3"
TITLE = "the code of MoCo v3"
MODELS = ("siamese_vit", "siamese_resnet")
NEEDS = ("torch", "timm")
# The place of the projector in the encoder, by network.
HEADS = {"siamese_vit": "head", "siamese_resnet": "fc"}
EPSILON = 1e-5


def matches(names: set[str]) -> bool:
    """Whether there is an encoder with a projector."""
    return any(f"{vit.BASE}{head}.1.running_mean" in names for head in HEADS.values())


def to_ours(state: State) -> State:
    """The same names, without counters."""
    return {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}


def infer(weights: Weights) -> Inferred:
    """The config, from the header or from the shapes. Raises `UserError`."""
    if "config" in weights.header:
        return Inferred(fields.upgrade(json.loads(weights.header["config"])), [], [])
    state = weights.state
    network = next(name for name, head in HEADS.items() if f"{vit.BASE}{head}.1.running_mean" in state)
    kind = network.removeprefix("siamese_")
    inner = vit.encoder_of(state, HEADS[network])
    if kind == "vit":
        found = vit.infer(dataclasses.replace(weights, state=vit.checked(inner), header={}))
    else:
        found = timm_backbones.infer(dataclasses.replace(weights, state=timm_backbones.to_ours(inner), header={}))
    values = fields.flat(fields.contrastive("moco_v3", kind))
    kept = ("image_size", "model.", "data.")
    values |= {
        k: v for k, v in found.values.items() if k in values and k.startswith(kept) and k != "model.name"
    }  # fmt: skip
    notes = found.notes
    if kind == "vit" and values["model.embed_dim"] == 384:
        values["model.num_heads"] = 12  # MoCo v3's ViT-S, unlike others
        notes = [note for note in notes if "attention heads" not in note]
    projector, last = _mlp(state, f"{vit.BASE}{HEADS[network]}")
    predictor, end = _mlp(state, "predictor")
    values |= {
        "model.projector": projector, "model.projector_last": last, "model.predictor": predictor,
        "model.predictor_last": end if predictor else "plain",
        "model.momentum": any(name.startswith("momentum_encoder.") for name in state),
    }  # fmt: skip
    return Inferred(values, [], notes)


def _mlp(state: State, stem: str) -> tuple[tuple[int, ...], str]:
    """The widths of the linear layers of an MLP, and what follows the last of them."""
    numbers = sorted(
        int(match[1])
        for name, value in state.items()
        if value.ndim == 2 and (match := re.fullmatch(rf"{re.escape(stem)}\.(\d+)\.weight", name))
    )
    widths = tuple(int(state[f"{stem}.{number}.weight"].shape[0]) for number in numbers)
    norm = f"{stem}.{numbers[-1] + 1}" if numbers else ""
    if f"{norm}.running_mean" not in state:
        return widths, "none"
    return widths, "scale" if f"{norm}.weight" in state else "plain"


def from_ours(network: dict[str, Any], state: State) -> Converted:
    """As it is, with PyTorch's counters."""
    counters = {
        name.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64)
        for name in state
        if name.endswith("running_mean")
    }
    return Converted(dict(state) | counters)


def opens_with(network: dict[str, Any]) -> dict[str, Any]:
    """The encoder in timm."""
    return (timm if network["model"] == "siamese_vit" else timm_backbones).opens_with(network)


def companions(folder: Path, network: dict[str, Any], opens: dict[str, Any], weights: str) -> None:
    """Write no other files."""


def snippet(certificate: dict[str, Any]) -> list[str]:
    """The encoder in timm, without the projector."""
    opens, head = certificate["opens_with"], HEADS[certificate["network"]["model"]]
    arguments = ", ".join(f"{k}={v!r}" for k, v in opens["arguments"].items())
    return [
        "import timm, torch",
        *torch_calls.read_lines(certificate["file"]["name"]),
        f'prefix = "{vit.BASE}"',
        "state = {k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)}",
        f'state = {{k: v for k, v in state.items() if not k.startswith("{head}.")}}',
        f'encoder = timm.create_model("{opens["model"]}", pretrained=False, {arguments}).eval()',
        "encoder.load_state_dict(state, strict=True)",
    ]


def open(file: Path, certificate: dict[str, Any]) -> Opened:
    """The encoder in timm, with projector and predictor in torch; every name and shape must match."""
    import timm as library

    network, opens = certificate["network"], certificate["opens_with"]
    state = torch_calls.state_of(file)
    encoder = library.create_model(opens["model"], pretrained=False, **opens["arguments"])
    encoder.load_state_dict(vit.encoder_of(state, HEADS[network["model"]]), strict=True)
    encoder.eval()
    projector = _in_torch(state, f"{vit.BASE}{HEADS[network['model']]}")
    predictor = _in_torch(state, "predictor")

    def features(x: Any, level: Any) -> Any:
        return encoder.forward_head(encoder.forward_features(x), pre_logits=True)

    functions: dict[str, Any] = {
        "features": features, "embed": lambda x, level: predictor(projector(features(x, level)))
    }  # fmt: skip
    return Opened(encoder, **torch_calls.calls(**functions))


def _in_torch(state: dict[str, Any], stem: str) -> Any:
    """An MLP with the weights of this name."""
    from torch import nn

    widths, last = _mlp(state, stem)
    own = {name.removeprefix(f"{stem}."): value for name, value in state.items() if name.startswith(f"{stem}.")}
    layers: list[Any] = []
    for number, width in enumerate(widths):
        layers.append(nn.Linear(own[f"{3 * number}.weight"].shape[1], width, bias=False))
        if number < len(widths) - 1:
            layers += [nn.BatchNorm1d(width, EPSILON), nn.ReLU()]
        elif last != "none":
            layers.append(nn.BatchNorm1d(width, EPSILON, affine=last == "scale"))
    out = nn.Sequential(*layers)
    if last == "scale":  # it has no bias
        own[f"{3 * len(widths) - 2}.bias"] = own[f"{3 * len(widths) - 2}.weight"] * 0
    out.load_state_dict(own, strict=True)
    return out.eval()
