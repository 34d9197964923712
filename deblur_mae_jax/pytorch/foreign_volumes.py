"""What Swin-UNETR a file of someone else holds: the config that our own run of it would have had."""

from __future__ import annotations

import re
from typing import Any

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pytorch.files import Weights


def describe(weights: Weights) -> tuple[dict[str, Any], list[str], list[str]]:
    """(flat config, class names, notes for the user) of a file without a config of ours. Raises `UserError`."""
    state, notes = weights.state, []
    stem = "swinViT.patch_embed.proj"
    kernel = state.get(f"{stem}.weight", state.get(f"{stem}.conv1.conv.weight"))
    if kernel is None:
        raise UserError(f"'{stem}.weight' is missing")
    if kernel.ndim != 5:
        raise UserError("the network is for pictures, not for volumes")
    features, chans = kernel.shape[:2]
    depths, heads = [], []
    for stage in range(1, 5):
        names = [n for n in state if n.startswith(f"swinViT.layers{stage}.0.blocks.")]
        numbers = {int(m[1]) for n in names if (m := re.search(r"blocks\.(\d+)\.", n))}
        table = f"swinViT.layers{stage}.0.blocks.0.attn.relative_position_bias_table"
        if numbers != set(range(len(numbers))) or table not in state:
            raise UserError(f"stage {stage} of the encoder is not whole")
        if state[table].shape[0] != 13**3:
            raise UserError(
                "its windows are not 7 voxels wide. Choices: networks with windows of 7"
            )
        depths.append(len(numbers))
        heads.append(int(state[table].shape[1]))
    out = state.get("out.conv.conv.weight")
    out_chans = 1 if out is None else int(out.shape[0])
    classes = ["background", *(f"label {i}" for i in range(1, out_chans))] if out_chans > 1 else []
    order = "legacy"
    if weights.format != "dae":
        notes.append(
            "the file does not say in which order its patches were merged: that of MONAI up to 1.4 assumed (legacy); "
            "if it was trained with MONAI 1.5 or newer, add --config.model.merge_order=monai15"
        )
    values: dict[str, Any] = {
        "seed": 0,
        "image_size": 96,
        "task.name": "segment" if classes else "disrupted_recon",
        "task.degrade": "none",
        "model.name": "swin_unetr",
        "model.variant": str(features) if features in (12, 24, 48) else "48",
        "model.feature_size": int(features),
        "model.in_chans": int(chans),
        "model.depths": tuple(depths),
        "model.num_heads": tuple(heads),
        "model.patch_embed": "conv" if f"{stem}.weight" in state else "unet_basic",
        "model.merge_order": order,
        "model.normalize": weights.format != "dae",
        "model.skip_input": "disrupted" if "encoder1.layer.conv1.conv.weight" in state else "none",
        "model.layout": "intended",
        "model.mask_token": False,
        "model.dtype": "auto",
        "model.remat": False,
        "data.spacing": (),
        "data.ct_window": (-1000.0, 1000.0),
        "data.name": "nifti",
        "data.root": "",
        "data.split": "",
        "data.fraction": 1.0,
        "data.decoded": "",
        "data.max_pixels": 500_000_000,
        "data.num_threads": 4,
        "data.check": "pixels",
        "data.max_bad_fraction": 0.2,
        "infer.overlap": 0.5,
        "infer.blending": "gaussian",
        "infer.batch_size": 4,
        "infer.flips": False,
        "infer.largest_component": False,
    }
    if not classes:
        values |= {"model.out_chans": out_chans, "task.local_mask": 0.0, "task.contrast": "none"}
    return values, classes, notes
