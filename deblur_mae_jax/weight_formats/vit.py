"""Code shared by the formats of ViTs: names, sizes, the linear probe. Our names are MAE's and, in addition, D2MAE's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

import numpy as np

from deblur_mae_jax import config as fields
from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.weight_formats.contract import Inferred, State, Weights

MODELS = ("vit_mae", "vit")
# Every name that a plain ViT, with or without MAE's decoder, can have.
_KNOWN = re.compile(
    r"^(cls_token|pos_embed|mask_token|decoder_pos_embed|blur_token|level_embed\..+"
    r"|(patch_embed\.proj|norm|fc_norm|head|head\.1|decoder_embed|decoder_norm|decoder_pred)\.(weight|bias)"
    r"|head\.0\.(running_mean|running_var|num_batches_tracked)"
    r"|(decoder_)?blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias))$"
)
_LAYER_SCALE = re.compile(r"^(blocks\.\d+)\.(?:ls([12])\.gamma|gamma_([12]))$")
TABLE = "relative_position_bias_table"
DECODER = re.compile(r"^(decoder_|mask_token)")
# Weights do not record the number of attention heads; these widths have a usual number.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_DECODER_HEADS = {512: 16}
# Arrays that every ViT has, their number of axes, and what is said where it is another.
_AXES = {"cls_token": 3, "pos_embed": 3, "patch_embed.proj.weight": 4, "blocks.0.mlp.fc1.weight": 2}
_EXPECTED = {
    "cls_token": "(1, 1, width)",
    "pos_embed": "(1, positions, width)",
    "patch_embed.proj.weight": "a convolution (width, channels, patch, patch)",
    "blocks.0.mlp.fc1.weight": "(hidden width, width)",
}


def plain(names: Iterable[str]) -> bool:
    """Whether these are the names of a ViT in MAE's or timm's code."""
    names = set(names)
    embeds = any(n.startswith("patch_embed.proj.") for n in names)
    other = any(n.startswith(("segmenter.", "decoder_noisy_embed.")) for n in names)
    return embeds and any(n.startswith("blocks.0.attn.qkv.") for n in names) and not other and not relative(names)


def relative(names: Iterable[str]) -> bool:
    """Whether these are the names of a ViT with relative positions, as BEiT's code has them."""
    tables = (f"rel_pos_bias.{TABLE}", f"blocks.0.attn.{TABLE}")
    return not set(tables).isdisjoint(names)


def has_levels(names: Iterable[str]) -> bool:
    """Whether there are parameters that encode a blur level."""
    return any(name.startswith(("blur_token", "level_embed.")) for name in names)


def has_decoder(names: Iterable[str]) -> bool:
    """Whether there are names that timm's networks never have."""
    names = set(names)
    decodes = any(name.startswith(("decoder_blocks.", "fc_norm")) for name in names)
    return decodes and "head.weight" not in names


def checked(state: State) -> State:
    """The state dict of a plain ViT, an encoder with an empty head. Raises `UserError` for other names."""
    state = _without_layer_scale(dict(state))
    state.pop("head.0.num_batches_tracked", None)
    if "decoder_pred.weight" not in state:
        state.pop("mask_token", None)  # DINOv2's, which its encoder alone does not need
    strange = sorted(name for name in state if not _KNOWN.match(name))
    if strange:
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        raise UserError(f"it is not a plain ViT: it also holds {', '.join(strange[:5])}{more}")
    if "decoder_pred.weight" not in state and not any(k.startswith("head.") for k in state):
        width = state["cls_token"].shape[-1] if "cls_token" in state else 0
        empty = np.zeros((0, width), np.float32)
        state |= {"head.weight": empty, "head.bias": empty[:, 0] if width else empty.reshape(0)}
    return state


def _without_layer_scale(state: State) -> State:
    """Factors of the branches (LayerScale of DINOv2 and DeiT III) become part of the layers before them.

    DeiT III adds no position to its class token, which gets one of zeros here.
    """
    found = [match for match in map(_LAYER_SCALE.match, list(state)) if match]
    for match in found:
        block, which = match[1], "attn.proj" if "1" in (match[2], match[3]) else "mlp.fc2"
        scale = state.pop(match[0])
        weight, bias = f"{block}.{which}.weight", f"{block}.{which}.bias"
        state[weight], state[bias] = state[weight] * scale[:, None], state[bias] * scale
    table = state.get("pos_embed")
    if found and table is not None and table.ndim == 3 and math.isqrt(table.shape[1]) ** 2 == table.shape[1]:
        state["pos_embed"] = np.concatenate([np.zeros_like(table[:, :1]), table], axis=1)
    return state


def fold_probe(state: State, epsilon: float = 1e-6) -> State:
    """A linear probe's BatchNorm folded into its linear layer: `head.0` and `head.1` become `head`."""
    if "head.0.running_mean" not in state:
        return state
    rest = {k: v for k, v in state.items() if not k.startswith("head.")}
    scale = 1 / np.sqrt(state["head.0.running_var"].astype(np.float64) + epsilon)
    weight = state["head.1.weight"] * scale
    bias = state["head.1.bias"] - weight @ state["head.0.running_mean"]
    return rest | {
        "head.weight": weight.astype(np.float32),
        "head.bias": bias.astype(np.float32),
    }


NO_HEADS = "student, heads and mask token: timm has no place for them (dino_v2 has)"
NO_PROJECTOR = "projector, predictor and momentum encoder: timm has no place for them (moco_v3 has)"
BASE = "base_encoder."


def encoder_of(state: State, extra: str, base: str = BASE) -> State:
    """The encoder inside of a network, under its own names.

    extra: what it does not have on its own: the projector's name, or the mask token.
    base: the encoder's prefix.
    """
    own = {name.removeprefix(base): value for name, value in state.items() if name.startswith(base)}
    return {name: value for name, value in own.items() if name.split(".")[0] != extra}


PROBE_FOLDED = "the BatchNorm of the linear probe is folded into the linear layer"


def without_levels(network: dict[str, Any], format: str) -> None:
    """Raise `UserError` for a network with a blur token."""
    if network["conditioning"] != "none":
        raise UserError(
            f"--format={format}: the network has a blur token, for which {format} has no place. "
            + ("Choices: d2mae" if network["model"] in MODELS else "No format has one for this network; fine-tune it")
        )


def infer(weights: Weights) -> Inferred:
    """The config of a ViT, from its header or inferred from the shapes, with notes on what was assumed.

    Raises `UserError` if the shapes are not those of a ViT for square images.
    """
    saved = json.loads(weights.header["config"]) if "config" in weights.header else None
    classes = json.loads(weights.header.get("classes", "[]"))
    has_decoder = "decoder_pred.weight" in weights.state
    if saved is not None:
        saved = fields.upgrade(saved)
        if weights.format is None:  # under this library's own names: the whole network
            return Inferred(saved, classes, [])
        if saved["model.name"] not in ("vit_mae", "siamese_vit", "vit_diffmae", "vit_dino") or has_decoder:
            return Inferred(saved, classes, [])
    values, classes, notes = _from_shapes(weights, saved or {})
    if saved is not None:  # an exported encoder without its decoder or its projector
        same = {k: v for k, v in saved.items() if k in values and k not in ("task.name", "model.name")}
        return Inferred(values | same, classes, [CLASS_TOKEN] if saved["model.name"] in PATCH_MEANS else [])
    return Inferred(values, classes, notes)


# Networks that encode an image as the mean of its patches.
PATCH_MEANS = ("vit_mae", "vit_diffmae")
CLASS_TOKEN = (
    "the file holds an encoder alone, which encodes an image as its class token; the run that it was exported from, "
    "and the formats with the decoder (mae, hf, d2mae), encode it as the mean of its patches"
)


def _from_shapes(weights: Weights, saved: dict[str, Any]) -> tuple[dict[str, Any], list[str], list[str]]:
    """(config, classes, notes). saved: the config of the header, which alone says the size of images not square."""
    state, config = weights.state, weights.config
    notes: list[str] = []
    for name, axes in _AXES.items():
        if name not in state:
            raise UserError(f"'{name}' is missing")
        if state[name].ndim != axes:
            raise UserError(f"'{name}' has the shape {state[name].shape}; expected {_EXPECTED[name]}")
    width, chans, patch, other = state["patch_embed.proj.weight"].shape
    tokens = state["pos_embed"].shape[1] - (2 if has_levels(state) else 1)
    size = saved.get("image_size", round(tokens**0.5) * patch)
    if sides.count(size, patch) != tokens or patch != other or chans not in (1, 3):
        raise UserError(
            f"the network is not for square images of 1 or 3 channels (patches {patch} x {other}, "
            f"{tokens} positions, {chans} channels)"
        )
    has_decoder = "decoder_pred.weight" in state
    base = fields.pretraining() if has_decoder else fields.finetuning()
    values = {k: v for k, v in fields.flat(base).items()}
    values |= {k: v for k, v in fields.without_source(2).items() if k in values and values[k] is None}
    mlp = state["blocks.0.mlp.fc1.weight"].shape[0] / width
    values |= {
        "image_size": size,
        "model.patch_size": patch,
        "model.in_chans": chans,
        "model.embed_dim": width,
        "model.depth": depth_of(state, "blocks"),
        "model.num_heads": _heads(config, "num_attention_heads", _HEADS, width, 64, notes),
        "model.attention": "xla",
    }
    if mlp != 4:
        values["model.mlp_ratio"] = mlp
    classes: list[str] = []
    if has_decoder:
        inner = state["decoder_pred.weight"].shape[1]
        norm = config.get("norm_pix_loss", weights.arguments.get("norm_pix_loss", False))
        values |= {
            "task.norm_pix_loss": bool(norm),
            "model.decoder_embed_dim": inner,
            "model.decoder_depth": depth_of(state, "decoder_blocks"),
            "model.decoder_num_heads": _heads(config, "decoder_num_attention_heads", _DECODER_HEADS, inner, 32, notes),
        }
    else:
        values |= {
            "model.pool": _pool(state, config, notes),
            "model.probe": "head.0.running_mean" in state,
            "model.drop_path": 0.0,
            "model.head_init": 0.01,
        }
        classes = classes_of(state.get("head.weight", state.get("head.1.weight")), config)
    values |= normalisation(config, chans, notes)
    # DeblurringMIM's models have `dmae` in their names.
    if str(weights.arguments.get("model", "")).startswith("dmae"):
        values["task.degrade"] = "blur.gaussian(sigma=1.1)"
        notes.append("its training arguments say that it learned to deblur: degradation blur.gaussian(sigma=1.1)")
    return values, classes, notes


def _pool(state: State, config: dict[str, Any], notes: list[str]) -> str:
    """The pooling of an encoder without a decoder."""
    if "fc_norm.weight" in state:
        return "mean"
    if config.get("global_pool") == "avg" or (config.get("model_args") or {}).get("global_pool") == "avg":
        notes.append(
            "its config.json says that the mean is taken after the last norm, which no network here does: its class "
            "token is read instead, and its own classifier gives other results"
        )
    return "cls"


def depth_of(state: State, stem: str) -> int:
    """The number of blocks under this name. Raises `UserError` if some are missing."""
    numbers = {int(m[1]) for name in state if (m := re.match(rf"{stem}\.(\d+)\.", name))}
    if numbers != set(range(len(numbers))) or not numbers:
        raise UserError(f"of {stem} it holds only the numbers {sorted(numbers)}")
    return len(numbers)


def _heads(
    config: dict[str, Any], name: str, usual: dict[int, int], width: int, head: int, notes: list[str]
) -> int:  # fmt: skip
    places = ((config, name), (config.get("model_args") or {}, name.replace("num_attention_heads", "num_heads")))
    for place, key in places:  # Hugging Face's, timm's
        if isinstance(place.get(key), int):
            return int(place[key])
    part, guess = "decoder" if name.startswith("decoder") else "encoder", usual.get(width, max(1, width // head))
    notes.append(
        f"the file does not record the attention heads of the {part}; we assume {guess} for its width of {width}"
        + ("" if width in usual else ", which is not a usual size")
    )
    if width % guess:
        raise UserError(f"a width of {width} does not say how many heads the network has")
    return guess


def normalisation(config: dict[str, Any], chans: int, notes: list[str]) -> dict[str, Any]:
    """The normalisation in a Hugging Face preprocessor or timm's config; ImageNet's if there is none."""
    timm = config.get("pretrained_cfg") or {}
    mean = config.get("image_mean") or timm.get("mean") or config.get("mean")  # the last: timm's older files
    std = config.get("image_std") or timm.get("std") or config.get("std")
    if config.get("do_normalize") is not False and mean and std and len(mean) in (1, chans) and len(std) in (1, chans):
        return {"data.mean": tuple(mean), "data.std": tuple(std)}
    if config.get("do_normalize") is False:
        return {"data.mean": (0.0,), "data.std": (1.0,)}
    notes.append("the file does not record how its images were normalised; we assume ImageNet's mean and std")
    return {"data.mean": (), "data.std": ()}


def classes_of(head: np.ndarray | None, config: dict[str, Any]) -> list[str]:
    """The names of the classes of a head `(classes, width)`, from the config beside it or by number."""
    if head is None or not len(head):
        return []
    names = config.get("id2label")
    if isinstance(names, dict) and len(names) == len(head):
        return [str(names[key]) for key in sorted(names, key=int)]
    names = config.get("label_names")
    if isinstance(names, list) and len(names) == len(head):
        return [str(name) for name in names]
    return [f"class {i}" for i in range(len(head))]
