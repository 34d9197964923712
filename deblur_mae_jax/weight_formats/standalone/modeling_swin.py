"""Swin-UNETRs of Disruptive Autoencoders and of older MONAIs, built from MONAI's parts. Needs torch and monai.

    from modeling_swin import load
    model = load(".")                  # the folder that holds this file, config.json and the weights
    logits = model(volume)             # (B, C, D, H, W), sides multiples of 32

MONAI 1.5 changed the order in which patches are merged but not the names. Weights that were trained with the older
order load without an error and give other results. `Merging` implements all three orders.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import torch
from monai.networks.nets.swin_unetr import PatchMergingV2, SwinUNETR
from torch import nn

ORDERS = {
    "legacy": ("000", "100", "010", "001", "101", "010", "001", "111"),
    "monai15": ("000", "100", "010", "001", "110", "101", "011", "111"),
    "v2": ("000", "001", "010", "011", "100", "101", "110", "111"),
}


def merging(order: str):
    """A class for `SwinUNETR(downsample=...)` that joins the eight neighbours in this order."""

    class Merging(PatchMergingV2):
        def forward(self, x):
            pad = [side % 2 for side in x.shape[1:4]]
            x = nn.functional.pad(x, (0, 0, 0, pad[2], 0, pad[1], 0, pad[0]))
            first = [[int(digit) for digit in corner] for corner in ORDERS[order]]
            neighbours = [x[:, i::2, j::2, k::2] for i, j, k in first]
            return self.reduction(self.norm(torch.cat(neighbours, dim=-1)))

    return Merging


LegacyMerging = merging("legacy")


class _Convolution(nn.Module):
    def __init__(self, before, after, stride):
        super().__init__()
        self.conv = nn.Conv3d(before, after, 3, stride, 1, bias=False)

    def forward(self, x):
        return self.conv(x)


class Stem(nn.Module):
    """The patch embedding of Disruptive Autoencoders: two convolutions with affine norms."""

    def __init__(self, channels, features):
        super().__init__()
        self.conv1, self.conv2 = (
            _Convolution(channels, features, 2),
            _Convolution(features, features, 1),
        )
        self.norm1 = nn.InstanceNorm3d(features, affine=True)
        self.norm2 = nn.InstanceNorm3d(features, affine=True)
        self.activation = nn.LeakyReLU(0.01)

    def forward(self, x):
        x = self.activation(self.norm1(self.conv1(x)))
        return self.activation(self.norm2(self.conv2(x)))


def build(network: dict) -> SwinUNETR:
    """The network that `config.json` describes, without weights."""
    old = "img_size" in inspect.signature(SwinUNETR.__init__).parameters  # MONAI 1.4 and older
    sides = network["image_size"]
    size = {"img_size": (sides,) * 3 if isinstance(sides, int) else tuple(sides)} if old else {}
    model = SwinUNETR(
        **size,
        in_channels=network["in_chans"],
        out_channels=network["out_chans"],
        depths=network["depths"],
        num_heads=network["num_heads"],
        feature_size=network["feature_size"],
        normalize=network["normalize"],
        downsample=merging(network["merge_order"]),
    )
    if network["patch_embed"] == "unet_basic":
        model.swinViT.patch_embed.proj = Stem(network["in_chans"], network["feature_size"])
    return model.eval()


def from_dae(state: dict) -> dict:
    """Names of DAE's pre-training checkpoints -> MONAI's; what its decoder does not use is left out."""
    out = {}
    for name, value in state.items():
        if name == "encoder.mask_token" or name.startswith("encoder.norm."):
            continue
        name = re.sub(r"^encoder\.layers(\d)\.0\.0\.", r"swinViT.layers\1.0.", name)
        name = re.sub(r"^encoder\.patch_embed\.", "swinViT.patch_embed.", name)
        out[re.sub(r"(swinViT\..*)\.mlp\.fc([12])\.", r"\1.mlp.linear\2.", name)] = value
    return out


def load(folder: str | Path, weights: str = "") -> SwinUNETR:
    """The network of an export with its weights; every name and shape has to fit."""
    folder = Path(folder)
    network = json.loads((folder / "config.json").read_text())
    path = folder / (weights or network["weights"])
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state = state.get("model", state)
    model = build(network)
    is_dae = any(name.startswith("encoder.layers1.") for name in state)
    model.load_state_dict(from_dae(state) if is_dae else state, strict=True)
    return model


@torch.no_grad()
def hidden_states(model: SwinUNETR, volume: torch.Tensor) -> list[torch.Tensor]:
    """The five tensors that the decoder receives."""
    return model.swinViT(volume, model.normalize)
