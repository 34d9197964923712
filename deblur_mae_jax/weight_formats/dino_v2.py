"""The names of DINOv2's code: student and teacher, each with a ViT and two heads of prototypes.

The format of timm holds the teacher's encoder alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax import config as fields
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.weight_formats import timm, torch_calls, vit
from deblur_mae_jax.weight_formats.contract import Converted, Inferred, Opened, State, Weights

NAME = "dino_v2"
TITLE = "the code of DINOv2"
MODELS = ("vit_dino",)
NEEDS = ("torch", "timm")
BACKBONE, MASK = "teacher.backbone.", ".backbone.mask_token"
# The last layer of a head has normalised weights: `weight_v` divided by its length, times `weight_g`.
_LAST, _DIRECTION, _LENGTH = ".last_layer", ".last_layer.weight_v", ".last_layer.weight_g"
_INNER = (".mlp_", ".mlp.")


def matches(names: set[str]) -> bool:
    """Whether there are a teacher and a head of prototypes."""
    return f"teacher.dino_head{_DIRECTION}" in names and f"{BACKBONE}patch_embed.proj.weight" in names


def to_ours(state: State) -> State:
    """Heads with one array of prototypes. Raises `UserError` for layers that a ViT of this library lacks."""
    out = {}
    for name, value in state.items():
        if name.endswith(_LENGTH):
            if not np.all(value == 1):
                raise UserError(f"'{name}' is not 1 everywhere; DINOv2's prototypes have length one")
        elif name.endswith(_DIRECTION):
            out[name.removesuffix(_DIRECTION) + _LAST] = value.T
        elif name.endswith(MASK):
            out[name] = value.reshape(1, 1, -1)
        else:
            out[name.replace(_INNER[1], _INNER[0]) if "_head." in name else name] = value
    vit.checked(vit.encoder_of(out, "mask_token", BACKBONE))
    return out


def infer(weights: Weights) -> Inferred:
    """The config of the header. Raises `UserError` for a file of other code."""
    if "config" not in weights.header:
        raise UserError(
            "student, teacher and heads of DINOv2 are read from an export of this library, whose header describes "
            "them; of other files take the encoder, with names that start with 'blocks.'"
        )
    return Inferred(fields.upgrade(json.loads(weights.header["config"])), [], [])


def from_ours(network: dict[str, Any], state: State) -> Converted:
    """The inverse of `to_ours`."""
    vit.without_levels(network, NAME)
    out: State = {}
    for name, value in state.items():
        if name.endswith(_LAST):
            out[name.removesuffix(_LAST) + _DIRECTION] = value.T
            out[name.removesuffix(_LAST) + _LENGTH] = np.ones((value.shape[1], 1), np.float32)
        elif name.endswith(MASK):
            out[name] = value.reshape(1, -1)
        else:
            out[name.replace(*_INNER)] = value
    return Converted(out)


def opens_with(network: dict[str, Any]) -> dict[str, Any]:
    """The encoder in timm."""
    return timm.opens_with(network)


def companions(folder: Path, network: dict[str, Any], opens: dict[str, Any], weights: str) -> None:
    """Write no other files, because DINOv2's code defines the network."""


def snippet(certificate: dict[str, Any]) -> list[str]:
    """The teacher's encoder in timm."""
    opens = certificate["opens_with"]
    arguments = ", ".join(f"{k}={v!r}" for k, v in opens["arguments"].items())
    return [
        "import timm, torch",
        *torch_calls.read_lines(certificate["file"]["name"]),
        f'prefix = "{BACKBONE}"',
        "state = {k[len(prefix):]: v for k, v in state.items() if k.startswith(prefix)}",
        'del state["mask_token"]',
        f'encoder = timm.create_model("{opens["model"]}", pretrained=False, {arguments}).eval()',
        "encoder.load_state_dict(state, strict=True)",
    ]


def open(file: Path, certificate: dict[str, Any]) -> Opened:
    """The encoders in timm and the student's head in torch; every name and shape must match."""
    opens, state = certificate["opens_with"], torch_calls.state_of(file)
    student, teacher = (_encoder(opens, state, f"{part}.backbone.") for part in ("student", "teacher"))
    head = _head(state, "student.dino_head.")
    functions: dict[str, Any] = {
        "features": lambda x, level: _cls(teacher, x),
        "embed": lambda x, level: _cls(student, x),
        "prototypes": lambda x, level: head(_cls(student, x)),
    }
    return Opened(teacher, **torch_calls.calls(**functions))


def _encoder(opens: dict[str, Any], state: dict[str, Any], prefix: str) -> Any:
    import timm as library

    model = library.create_model(opens["model"], pretrained=False, **opens["arguments"])
    model.load_state_dict(vit.encoder_of(state, "mask_token", prefix), strict=True)
    return model.eval()


def _cls(encoder: Any, x: Any) -> Any:
    return encoder.forward_head(encoder.forward_features(x), pre_logits=True)


def _head(state: dict[str, Any], prefix: str) -> Any:
    """A head of prototypes as a function of cls tokens."""
    from torch import nn
    from torch.nn import functional as F

    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    layers: list[Any] = []
    for number in (0, 2, 4):
        layers += [nn.Linear(*own[f"mlp.{number}.weight"].shape[::-1]), nn.GELU()]
    mlp = nn.Sequential(*layers[:-1])
    mlp.load_state_dict({k.removeprefix("mlp."): v for k, v in own.items() if k.startswith("mlp.")}, strict=True)
    prototypes = F.normalize(own["last_layer.weight_v"], dim=1) * own["last_layer.weight_g"]
    return lambda x: F.normalize(mlp(x), dim=-1) @ prototypes.T
