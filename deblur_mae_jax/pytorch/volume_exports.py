"""Swin-UNETRs for PyTorch: what fits MONAI's or DAE's layout, how it is opened, and what its model card says."""

from __future__ import annotations

from typing import Any

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pretrained import Pretrained
from deblur_mae_jax.pytorch import names, swin_formats
from deblur_mae_jax.pytorch.formats import State

FORMATS = ("monai", "dae")


def state_of(trained: Pretrained, format: str) -> tuple[State, list[str]]:
    """(state dict of the format, what has no place in it). Raises `UserError` where the network does not fit."""
    model = trained.network.model
    if model.layout != "intended":
        raise UserError(
            f"--format={format}: the network reads depth for channels (config.model.layout=as_coded), which no other "
            "code does on purpose. Choices: none; train with config.model.layout=intended"
        )
    if model.skip_input == "none":
        raise UserError(
            f"--format={format}: the network has no skip connection at full resolution "
            "(config.model.skip_input=none), for which the format has no choice. Fine-tune it first"
        )
    if format == "monai" and model.patch_embed != "conv":
        raise UserError(
            "--format=monai: the network has DAE's patch embedding (config.model.patch_embed=unet_basic), which "
            "MONAI's SwinUNETR has not. Choices: dae"
        )
    state = names.state_dict_from_params(trained.params)
    left = []
    if state.pop("swinViT.mask_token", None) is not None:
        left.append("the mask token, which only pre-training needs")
    return swin_formats.to_monai(state) if format == "monai" else swin_formats.to_dae(state), left


def describe(trained: Pretrained) -> dict[str, Any]:
    """What `modeling_swin.py` builds the network from, and how its volumes are prepared; plain values."""
    model, data = trained.network.model, trained.config.data
    return {
        "task": trained.config.task.name,
        "classes": trained.classes,
        "image_size": model.image_size,
        "in_chans": model.in_chans,
        "out_chans": model.out_chans,
        "feature_size": model.feature_size,
        "depths": list(model.depths),
        "num_heads": list(model.num_heads),
        "patch_embed": model.patch_embed,
        "merge_order": model.merge_order,
        "normalize": model.normalize,
        "spacing": list(data.get("spacing", ())),
        "ct_window": list(data.get("ct_window", ())),
    }


def opens_with(network: dict[str, Any], format: str) -> dict[str, Any]:
    """The library, class and arguments that open an export of this format."""
    arguments = {
        "in_channels": network["in_chans"],
        "out_channels": network["out_chans"],
        "feature_size": network["feature_size"],
    }
    usual = {"depths": [2, 2, 2, 2], "num_heads": [3, 6, 12, 24], "normalize": True}
    arguments |= {k: network[k] for k, v in usual.items() if network[k] != v}
    order = network["merge_order"]
    return {
        "library": "monai",
        "class": "SwinUNETR",
        "arguments": arguments,
        "merge_order": order,
        "file": "modeling_swin.py",
        "versions": {
            "legacy": "1.4 or older, with img_size as one more argument; newer ones with downsample=LegacyMerging "
            "of modeling_swin.py",
            "monai15": "1.5 or newer",
            "v2": "any, with downsample='mergingv2'",
        }[order] if format == "monai" else "any, through modeling_swin.py; or DAE's own code",
    }  # fmt: skip


def introduction(certificate: dict[str, Any]) -> tuple[str, str]:
    """(title, first paragraph) of the card."""
    network = certificate["network"]
    labels = ", ".join(network["classes"][1:])
    what = f"A segmentation of {labels}" if labels else "A pre-trained Swin-UNETR"
    reader = {"monai": "MONAI", "dae": "the code of Disruptive Autoencoders"}[certificate["format"]]
    return what, (
        f"Swin-UNETR, {network['feature_size']} wide, cubes of {network['image_size']} voxels, patches merged in the "
        f"order `{network['merge_order']}`. Trained with deblur_mae_jax, written for {reader} "
        f"({certificate['opens_with']['versions']}). Not a medical device."
    )


def snippet(certificate: dict[str, Any]) -> list[str]:
    """Python that opens the file."""
    opens, name = certificate["opens_with"], certificate["file"]["name"]
    if certificate["format"] == "dae" or not name.endswith(".safetensors"):
        return ["from modeling_swin import load", f'model = load(".", "{name}")']
    arguments = ", ".join(f"{k}={v!r}" for k, v in opens["arguments"].items())
    lines = ["from monai.networks.nets import SwinUNETR", "from safetensors.torch import load_file"]
    if opens["merge_order"] == "legacy":
        lines.append("from modeling_swin import LegacyMerging  # not with MONAI 1.4 or older")
        arguments += ", downsample=LegacyMerging"
    if opens["merge_order"] == "v2":
        arguments += ", downsample='mergingv2'"
    return [*lines, f"model = SwinUNETR({arguments}).eval()",
            f'model.load_state_dict(load_file("{name}"), strict=True)']  # fmt: skip


def steps(network: dict[str, Any]) -> list[str]:
    """What is done to a volume first."""
    low, high = network["ct_window"] or (-1000.0, 1000.0)
    spacing = " x ".join(f"{s:g}" for s in network["spacing"])
    out = ["Turn the volume to RAS orientation."]
    if spacing:
        out.append(f"Resample it to {spacing} mm (linear).")
    out += [
        f"CT: clip to {low:g} .. {high:g} HU and scale to 0..1. MR: subtract the mean and divide by the standard "
        "deviation of the voxels that are not zero, and leave the zeros.",
        f"Cut cubes of {network['image_size']} voxels, or use a sliding window of that size.",
    ]
    return out
