"""MONAI's `SwinUNETR`, and the checkpoints of its self-supervised pre-training."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.weight_formats import swin
from deblur_mae_jax.weight_formats.contract import Converted, Opened, State

NAME = "monai"
TITLE = "MONAI"
MODELS = swin.MODELS
NEEDS = ("torch", "monai")
infer: Callable[..., Any] = swin.infer
companions: Callable[..., None] = swin.companions
VERSIONS = {
    "legacy": "1.4 or older, with img_size as one more argument; newer ones with downsample=LegacyMerging "
    "of modeling_swin.py",
    "monai15": "1.5 or newer",
    "v2": "any, with downsample='mergingv2'",
}


def matches(names: set[str]) -> bool:
    """A whole network, or an encoder alone."""
    return any(re.match(r"(swinViT\.)?layers1\.0\.", name) for name in names)


def to_ours(state: State) -> State:
    """The encoder under `swinViT`, without the heads of pretext tasks."""
    if any(name.startswith("swinViT.layers1.") for name in state):
        return swin.learned(state)
    encoder = {n: v for n, v in state.items() if re.match(r"(layers\d|patch_embed)\.", n)}
    return swin.learned({f"swinViT.{name}": value for name, value in encoder.items()})


def from_ours(network: dict[str, Any], state: State) -> Converted:
    """Add MONAI's index tables."""
    swin.require(network, NAME)
    if network["patch_embed"] != "conv":
        raise UserError(
            "--format=monai: the network has DAE's patch embedding (config.model.patch_embed=unet_basic), which "
            "MONAI's SwinUNETR has not. Choices: dae"
        )
    state, left_out = swin.without_token(state)
    return Converted(swin.with_indices(state), left_out)


def opens_with(network: dict[str, Any]) -> dict[str, Any]:
    """MONAI's class, and the versions whose merging order fits."""
    return swin.opens_with(network) | {"versions": VERSIONS[network["merge_order"]]}


def snippet(certificate: dict[str, Any]) -> list[str]:
    """MONAI's class."""
    opens, name = certificate["opens_with"], certificate["file"]["name"]
    if not name.endswith(".safetensors"):
        return swin.load_snippet(certificate)
    arguments = ", ".join(f"{k}={v!r}" for k, v in opens["arguments"].items())
    lines = ["from monai.networks.nets import SwinUNETR", "from safetensors.torch import load_file"]
    if opens["merge_order"] == "legacy":
        lines.append("from modeling_swin import LegacyMerging  # not with MONAI 1.4 or older")
        arguments += ", downsample=LegacyMerging"
    if opens["merge_order"] == "v2":
        arguments += ", downsample='mergingv2'"
    return [*lines, f"model = SwinUNETR({arguments}).eval()",
            f'model.load_state_dict(load_file("{name}"), strict=True)']  # fmt: skip


def open(file: Path, certificate: dict[str, Any]) -> Opened:
    """Open it with MONAI alone if its merging order fits, else with the file beside the weights."""
    opens = certificate["opens_with"]
    if opens["merge_order"] == "legacy":
        return swin.open_model(file)
    merging = {"downsample": "mergingv2"} if opens["merge_order"] == "v2" else {}
    return swin.open_model(file, lambda module: module.SwinUNETR(**opens["arguments"], **merging))
