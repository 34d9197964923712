"""Code shared by the formats of Swin-UNETRs. This library uses MONAI's names."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax import config as fields
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models.swin import WINDOW, relative_index
from deblur_mae_jax.weight_formats import torch_calls
from deblur_mae_jax.weight_formats.contract import Inferred, Opened, State, Weights
from deblur_mae_jax.workdir import run_folder

MODELS = ("swin_unetr",)
# Computed, not learned; and layers that MONAI 0.8, which DAE pins, creates and never uses.
_UNUSED = re.compile(
    r"relative_position_index$|^encoder(2|3|4|10)\.layer\.conv3\.|^(encoder|swinViT)\.norm\.|^encoder\.mask_token$"
)
WHOLE = "encoder2.layer.conv1.conv.weight"


def learned(state: State) -> State:
    """Remove the entries that are not learned, and rename the MLP layers of each block to MONAI's names."""
    return {
        re.sub(r"(swinViT\..*)\.mlp\.fc([12])\.", r"\1.mlp.linear\2.", name): value
        for name, value in state.items()
        if not _UNUSED.search(name)
    }


def with_indices(state: State) -> State:
    """Add the `relative_position_index` (int64) that MONAI stores with every bias table."""
    table = relative_index((WINDOW,) * 3).astype(np.int64)
    names = [name for name in state if name.endswith("relative_position_bias_table")]
    return state | {name.replace("bias_table", "index"): table for name in names}


def require(network: dict[str, Any], format: str) -> None:
    """Raise `UserError` for a network that neither layout can hold."""
    if network["layout"] != "intended":
        raise UserError(
            f"--format={format}: the network reads depth for channels (config.model.layout=as_coded), which no other "
            "code does on purpose. Choices: none; train with config.model.layout=intended"
        )
    if network["skip_input"] == "none":
        raise UserError(
            f"--format={format}: the network has no skip connection at full resolution "
            "(config.model.skip_input=none), for which the format has no choice. Fine-tune it first"
        )


def without_token(state: State) -> tuple[State, list[str]]:
    """(the state without the mask token, what was left out)."""
    if "swinViT.mask_token" not in state:
        return state, []
    rest = {k: v for k, v in state.items() if k != "swinViT.mask_token"}
    return rest, ["the mask token, which only pre-training needs"]


def infer(weights: Weights) -> Inferred:
    """The config of a Swin-UNETR, from its header or inferred from the shapes. Raises `UserError`."""
    alone = ("swinViT",) if WHOLE not in weights.state else None
    if "config" in weights.header:
        config = fields.upgrade(json.loads(weights.header["config"]))
        held = alone if config["model.name"] in MODELS else None
        return Inferred(config, json.loads(weights.header.get("classes", "[]")), [], held)
    values, classes, notes = _from_shapes(weights)
    return Inferred(values, classes, notes, alone)


def _from_shapes(weights: Weights) -> tuple[dict[str, Any], list[str], list[str]]:
    state, notes = weights.state, []
    stem = "swinViT.patch_embed.proj"
    kernel = state.get(f"{stem}.weight", state.get(f"{stem}.conv1.conv.weight"))
    if kernel is None:
        raise UserError(f"'{stem}.weight' is missing")
    if kernel.ndim != 5:
        raise UserError("the network is for 2-D images, not for volumes")
    features, chans = kernel.shape[:2]
    depths, heads = [], []
    for stage in range(1, 5):
        names = [n for n in state if n.startswith(f"swinViT.layers{stage}.0.blocks.")]
        numbers = {int(m[1]) for n in names if (m := re.search(r"blocks\.(\d+)\.", n))}
        table = f"swinViT.layers{stage}.0.blocks.0.attn.relative_position_bias_table"
        if numbers != set(range(len(numbers))) or table not in state:
            raise UserError(f"stage {stage} of the encoder is not complete")
        if state[table].shape[0] != 13**3:
            raise UserError("its windows are not 7 voxels wide. Choices: networks with windows of 7")
        depths.append(len(numbers))
        heads.append(int(state[table].shape[1]))
    out = state.get("out.conv.conv.weight")
    out_chans = 1 if out is None else int(out.shape[0])
    classes = ["background", *(f"label {i}" for i in range(1, out_chans))] if out_chans > 1 else []
    from_dae = weights.format.NAME == "dae"
    if not from_dae:
        notes.append(
            "weight files do not record MONAI's patch-merging order; we assume `legacy`, that of MONAI up to 1.4. For "
            "weights trained with MONAI 1.5 or newer, add --config.model.merge_order=monai15"
        )
    values = fields.flat(fields.volume_segmentation() if classes else fields.volumes())
    values |= {
        "image_size": 96,
        "task.degrade": "none",
        "model.variant": str(features) if features in (12, 24, 48) else "48",
        "model.feature_size": int(features),
        "model.in_chans": int(chans),
        "model.depths": tuple(depths),
        "model.num_heads": tuple(heads),
        "model.patch_embed": "conv" if f"{stem}.weight" in state else "unet_basic",
        "model.merge_order": "legacy",
        "model.normalize": not from_dae,
        "model.skip_input": "disrupted" if "encoder1.layer.conv1.conv.weight" in state else "none",
    }
    if not classes:
        values |= {"model.out_chans": out_chans, "task.local_mask": 0.0, "task.contrast": "none"}
    return values, classes, notes


def opens_with(network: dict[str, Any]) -> dict[str, Any]:
    """MONAI's class and its arguments."""
    arguments = {
        "in_channels": network["in_chans"],
        "out_channels": network["out_chans"],
        "feature_size": network["feature_size"],
    }
    usual = {"depths": [2, 2, 2, 2], "num_heads": [3, 6, 12, 24], "normalize": True}
    arguments |= {k: network[k] for k, v in usual.items() if network[k] != v}
    return {
        "library": "monai",
        "class": "SwinUNETR",
        "arguments": arguments,
        "merge_order": network["merge_order"],
        "file": torch_calls.MODELING_SWIN.name,
    }


def companions(folder: Path, network: dict[str, Any], opens: dict[str, Any], weights: str) -> None:
    """Write `config.json` and the Python file that opens both layouts."""
    run_folder.write_json(folder / "config.json", network | {"weights": weights})
    shutil.copyfile(torch_calls.MODELING_SWIN, folder / torch_calls.MODELING_SWIN.name)


def load_snippet(certificate: dict[str, Any]) -> list[str]:
    """Through the file beside the weights."""
    name = certificate["file"]["name"]
    return ["from modeling_swin import load", f'model = load(".", "{name}")']


def open_model(file: Path, make: Any = None) -> Opened:
    """The network that `make(module)` builds, or the one that the file beside the weights loads.

    make: takes `modeling_swin` as a module, returns a model in PyTorch.
    """
    torch = torch_calls.need_torch("exports")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings that MONAI's imports raise
        module = torch_calls.modeling(torch_calls.MODELING_SWIN)
        if make is None:
            model = module.load(file.parent, file.name)
        else:
            model = make(module).eval()
            model.load_state_dict(torch_calls.state_of(file), strict=True)

    def volume(x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        data = torch.tensor(x)
        with torch.inference_mode():
            hidden = model.swinViT(data, model.normalize)
            return model(data).numpy(), [h.numpy() for h in hidden]

    return Opened(model, volume=volume)
