"""timm's `Beit`, whose names are those of BEiT's code; SimMIM's and USFM's fine-tuned networks have them too."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from deblur_mae_jax import config as fields
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import beit
from deblur_mae_jax.weight_formats import timm as timm_format
from deblur_mae_jax.weight_formats import vit
from deblur_mae_jax.weight_formats.contract import Converted, Inferred, Opened, State, Weights

NAME = "timm"
TITLE = "timm"
MODELS = ("beit",)
NEEDS = ("torch", "timm")
companions: Callable[..., None] = timm_format.companions
snippet: Callable[[dict[str, Any]], list[str]] = timm_format.snippet
open: Callable[..., Opened] = timm_format.open
_MODELS = {(768, 12, 12): "beit_base_patch16_224", (1024, 24, 16): "beit_large_patch16_224"}
_TABLE = f"attn.{beit.TABLE}"
# Parts of BEiT's pre-training, and constants.
_UNUSED = re.compile(r"^(mask_token|lm_head\..+)$|(relative_position_index|attn\.k_bias)$")
_KNOWN = re.compile(
    rf"^(cls_token|rel_pos_bias\.{beit.TABLE}|(patch_embed\.proj|norm|fc_norm|head)\.(weight|bias)"
    r"|blocks\.\d+\.((norm1|norm2|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)|attn\.qkv\.weight"
    rf"|gamma_[12]|attn\.[qv]_bias|{re.escape(_TABLE)}))$"
)


def matches(names: set[str]) -> bool:
    """A ViT with relative positions."""
    return vit.relative(names) and any(name.startswith("patch_embed.proj.") for name in names)


def to_ours(state: State) -> State:
    """The same names without constants; a head without classes where there is none. Raises `UserError`."""
    state = {name: value for name, value in state.items() if not _UNUSED.search(name)}
    strange = sorted(name for name in state if not _KNOWN.match(name))
    if strange:
        why = " (a table of positions and relative positions at once are not read)" if "pos_embed" in strange else ""
        raise UserError(f"it is not a plain BEiT: it also holds {', '.join(strange[:5])}{why}")
    if "head.weight" not in state and "cls_token" in state:
        width = state["cls_token"].shape[-1]
        state |= {"head.weight": np.zeros((0, width), np.float32), "head.bias": np.zeros(0, np.float32)}
    return state


def infer(weights: Weights) -> Inferred:
    """The config, from the header or from the shapes. Raises `UserError`."""
    if "config" in weights.header:
        saved = fields.upgrade(json.loads(weights.header["config"]))
        return Inferred(saved, json.loads(weights.header.get("classes", "[]")), [])
    state, notes = weights.state, list[str]()
    values = fields.flat(fields.beit())
    values |= {k: v for k, v in fields.without_source(2).items() if k in values and values[k] is None}
    kernel = state["patch_embed.proj.weight"]
    shared = f"rel_pos_bias.{beit.TABLE}" in state
    table = state[f"rel_pos_bias.{beit.TABLE}" if shared else f"blocks.0.{_TABLE}"]
    grid = (round((len(table) - beit.CLS_ROWS) ** 0.5) + 1) // 2
    if kernel.ndim != 4 or kernel.shape[1] not in (1, 3) or (2 * grid - 1) ** 2 + beit.CLS_ROWS != len(table):
        raise UserError(
            f"the network is not for square images of 1 or 3 channels (patch embedding {kernel.shape}, {len(table)} "
            "relative positions)"
        )
    gamma = state.get("blocks.0.gamma_1")
    values |= {
        "image_size": grid * kernel.shape[2], "model.patch_size": kernel.shape[2], "model.in_chans": kernel.shape[1],
        "model.embed_dim": kernel.shape[0], "model.depth": vit.depth_of(state, "blocks"),
        "model.num_heads": table.shape[1], "model.attention": "xla",
        "model.positions": "relative_shared" if shared else "relative",
        "model.layer_scale": 0.0 if gamma is None else beit.LAYER_SCALE,
        "model.pool": "cls" if "norm.weight" in state else "mean", "model.drop_path": 0.0,
    }  # fmt: skip
    mlp = state["blocks.0.mlp.fc1.weight"].shape[0] / kernel.shape[0]
    if mlp != 4:
        values["model.mlp_ratio"] = mlp
    values |= vit.normalisation(weights.config, kernel.shape[1], notes)
    return Inferred(values, vit.classes_of(state.get("head.weight"), weights.config), notes)


def from_ours(network: dict[str, Any], state: State) -> Converted:
    """As it is."""
    if network["conditioning"] != "none":
        raise UserError(f"--format={NAME}: the network has a blur token, for which timm's Beit has no place")
    return Converted(state)


def opens_with(network: dict[str, Any]) -> dict[str, Any]:
    """`timm.create_model` with a model's name and arguments."""
    size = (network["embed_dim"], network["depth"], network["num_heads"])
    shared = network["positions"] == "relative_shared"
    arguments: dict[str, Any] = {
        "img_size": network["image_size"],
        "patch_size": network["patch_size"],
        "in_chans": network["in_chans"],
        "num_classes": network.get("num_classes", 0),
        "global_pool": "avg" if network["pool"] == "mean" else "token",
        "init_values": network["layer_scale"] or None,
        "use_rel_pos_bias": not shared,
        "use_shared_rel_pos_bias": shared,
    }
    if size not in _MODELS:
        arguments |= dict(zip(("embed_dim", "depth", "num_heads"), size, strict=True))
    if network["mlp_ratio"] != 4:
        arguments["mlp_ratio"] = network["mlp_ratio"]
    return {"library": "timm", "model": _MODELS.get(size, "beit_base_patch16_224"), "arguments": arguments}
