"""The names of SimMIM's code: an encoder with a mask token, of a ViT, BEiT or Swin, and one layer as decoder.

A Swin has Microsoft's names there, in which the layers that halve a map are at the end of a stage.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deblur_mae_jax import config as fields
from deblur_mae_jax import sides
from deblur_mae_jax.models import masking
from deblur_mae_jax.models.swin2d import PATCH
from deblur_mae_jax.weight_formats import timm, timm_backbones, timm_beit, torch_calls, vit
from deblur_mae_jax.weight_formats.contract import Converted, Inferred, Opened, State, Weights

NAME = "simmim"
TITLE = "the code of SimMIM"
MODELS = ("vit_mim", "swin2d_mim")
NEEDS = ("torch", "timm")
ENCODER, MASK_TOKEN = "encoder.", "encoder.mask_token"
_HALVING = re.compile(r"^encoder\.layers\.(\d)\.downsample\.")
_CONSTANTS = re.compile(r"(relative_position_index|attn_mask)$")


def matches(names: set[str]) -> bool:
    """Whether there is a mask token inside of the encoder."""
    return {MASK_TOKEN, "decoder.0.weight"} <= set(names)


def to_ours(state: State) -> State:
    """The same names without constants; the halving layers at the start of a stage."""
    state = {name: value for name, value in state.items() if not _CONSTANTS.search(name)}
    return _moved(state, 1) if any(_HALVING.match(name) for name in state) else state


def _moved(state: State, stages: int) -> State:
    rename: Callable[[re.Match[str]], str] = lambda found: f"encoder.layers.{int(found[1]) + stages}.downsample."
    return {_HALVING.sub(rename, name): value for name, value in state.items()}


def infer(weights: Weights) -> Inferred:
    """The config, from the header or from the shapes. Raises `UserError`."""
    if "config" in weights.header:
        return Inferred(fields.upgrade(json.loads(weights.header["config"])), [], [])
    inside = _encoder_of(weights.state)
    swin = any(name.startswith("layers.") for name in inside)
    values = fields.flat(fields.simmim("swin2d" if swin else "vit"))
    reader = timm_backbones if swin else timm_beit if vit.relative(inside) else timm
    found = reader.infer(dataclasses.replace(weights, state=reader.to_ours(inside), header={}))
    kept = ("image_size", "model.", "data.")
    values |= {k: v for k, v in found.values.items() if k in values and k.startswith(kept) and k != "model.name"}
    if not swin:
        values["model.positions"] = "relative_shared" if vit.relative(inside) else "sincos"
    side, token = values["image_size"], PATCH if swin else values["model.patch_size"]
    if not sides.fits(side, values["model.mask_size"]) or values["model.mask_size"] % token:
        values["model.mask_size"] = token
    return Inferred(values, [], [*found.notes, f"we assume masked patches of {values['model.mask_size']} pixels"])


def _encoder_of(state: State) -> State:
    """The encoder under its own names, without the mask token."""
    own = {name.removeprefix(ENCODER): value for name, value in state.items() if name.startswith(ENCODER)}
    return {name: value for name, value in own.items() if name != "mask_token"}


def from_ours(network: dict[str, Any], state: State) -> Converted:
    """The halving layers of a Swin at the end of a stage."""
    if network["model"] == "swin2d_mim":
        return Converted(_moved(state, -1))
    vit.without_levels(network, NAME)
    return Converted(dict(state))


def opens_with(network: dict[str, Any]) -> dict[str, Any]:
    """The encoder in timm."""
    if network["model"] == "swin2d_mim":
        return timm_backbones.opens_with(network | {"model": "swin2d", "num_classes": 0})
    if network["positions"] == "sincos":
        return timm.opens_with(network)
    return timm_beit.opens_with(network | {"pool": "cls", "num_classes": 0})


def companions(folder: Path, network: dict[str, Any], opens: dict[str, Any], weights: str) -> None:
    """Write no other files."""


def snippet(certificate: dict[str, Any]) -> list[str]:
    """The encoder in timm, without the mask token."""
    opens = certificate["opens_with"]
    arguments = ", ".join(f"{k}={v!r}" for k, v in opens["arguments"].items())
    lines = [
        "import timm, torch",
        *torch_calls.read_lines(certificate["file"]["name"]),
        'state = {k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")}',
        'del state["mask_token"]',
        f'encoder = timm.create_model("{opens["model"]}", pretrained=False, {arguments}).eval()',
    ]
    if certificate["network"]["model"] == "swin2d_mim":
        lines.append("state = timm.models.swin_transformer.checkpoint_filter_fn(state, encoder)")
        return [*lines, "encoder.load_state_dict(state, strict=False)  # without a head"]
    return [*lines, "encoder.load_state_dict(state, strict=True)"]


def open(file: Path, certificate: dict[str, Any]) -> Opened:
    """The encoder in timm, the decoder in torch; every name and shape must match."""
    import timm as library
    import torch

    network, opens = certificate["network"], certificate["opens_with"]
    state = to_ours(torch_calls.state_of(file))
    encoder = library.create_model(opens["model"], pretrained=False, **opens["arguments"])
    encoder.load_state_dict(_encoder_of(state), strict=True)
    encoder.eval()
    swin, chans = network["model"] == "swin2d_mim", network["in_chans"]
    stride = round((len(state["decoder.0.weight"]) / chans) ** 0.5)
    decoder = torch.nn.Sequential(
        torch.nn.Conv2d(*reversed(state["decoder.0.weight"].shape[:2]), kernel_size=1),
        torch.nn.PixelShuffle(stride),
    )
    own = {name.removeprefix("decoder."): value for name, value in state.items() if name.startswith("decoder.")}
    decoder.load_state_dict(own, strict=True)
    P, token = network["mask_size"], PATCH if swin else network["patch_size"]
    rows, columns = sides.divided(network["image_size"], P)

    def tokens(x: Any, level: Any) -> Any:
        out = encoder.forward_features(x)
        return out.flatten(1, 2) if swin else out

    def reconstruct(x: Any, level: Any, ratio: float, noise: Any) -> Any:
        def hide(module: Any, arguments: Any, out: Any) -> Any:
            kept = masking.num_kept(rows * columns, ratio)
            mask = noise.argsort(1).argsort(1) >= kept
            mask = mask.reshape(-1, rows, columns).repeat_interleave(P // token, 1).repeat_interleave(P // token, 2)
            mask = mask[..., None] if swin else mask.flatten(1)[..., None]
            return torch.where(mask, state[MASK_TOKEN].flatten(), out)

        handle = encoder.patch_embed.register_forward_hook(hide) if ratio else None
        y = tokens(x, level)
        if handle is not None:
            handle.remove()
        y = y if swin else y[:, 1:]
        places = sides.divided(network["image_size"], stride)
        with torch.no_grad():
            image = decoder(y.transpose(1, 2).reshape(len(y), -1, *places))
        patches = image.reshape(len(image), chans, rows, P, columns, P).permute(0, 2, 4, 3, 5, 1)
        return patches.reshape(len(image), rows * columns, -1)

    functions: dict[str, Any] = {"tokens": tokens, "reconstruct": reconstruct}
    return Opened(encoder, **torch_calls.calls(**functions))
