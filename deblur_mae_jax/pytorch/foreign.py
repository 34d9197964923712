"""What network a file of someone else holds: the config that our own run of it would have had."""

from __future__ import annotations

import re
from typing import Any

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pytorch import formats
from deblur_mae_jax.pytorch.files import Weights

# Weights do not say how many heads they are for; these widths have a usual number.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
_DECODER_HEADS = {512: 16}


def describe(weights: Weights) -> tuple[dict[str, Any], list[str], list[str]]:
    """(flat config, class names, notes for the user) of a file without a config of ours.

    Raises `UserError` where the shapes do not make a square ViT.
    """
    state, config = weights.state, weights.config
    notes: list[str] = []
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight"):
        if name not in state:
            raise UserError(f"'{name}' is missing")
    width, chans, patch, other = state["patch_embed.proj.weight"].shape
    tokens = state["pos_embed"].shape[1] - 1
    grid = round(tokens**0.5)
    if grid * grid != tokens or patch != other or chans not in (1, 3):
        raise UserError(
            f"the network is not for square images of 1 or 3 channels (patches {patch} x {other}, "
            f"{tokens} positions, {chans} channels)"
        )
    has_decoder = "decoder_pred.weight" in state
    depth = _depth(state, "blocks")
    mlp = state["blocks.0.mlp.fc1.weight"].shape[0] / width
    values: dict[str, Any] = {
        "seed": 0,
        "image_size": grid * patch,
        "task.name": "masked_recon" if has_decoder else "classify",
        "task.degrade": "none",
        "task.blur_site": "native",
        "task.target": "clean",
        "task.loss_on": "all",
        "task.mask_ratio": 0.75,
        "task.norm_pix_loss": bool(
            config.get("norm_pix_loss", weights.arguments.get("norm_pix_loss", False))
        ),
        "model.name": "vit_mae" if has_decoder else "vit",
        "model.variant": "B",
        "model.patch_size": patch,
        "model.in_chans": chans,
        "model.embed_dim": width,
        "model.depth": depth,
        "model.num_heads": _heads(config, "num_attention_heads", _HEADS, width, 64, notes),
        "model.conditioning": "none",
        "model.level_code": "learned",
        "model.dtype": "auto",
        "model.attention": "xla",
        "model.remat": False,
        "data.mean": (),
        "data.std": (),
        "data.crop_scale": (0.2, 1.0),
        "data.crop_ratio": (3 / 4, 4 / 3),
        "data.flip": True,
        "data.gray_target": False,
        "data.max_side": 1024,
        "data.bits16": "minmax",
        "data.name": "image_folder",
        "data.root": "",
        "data.split": "",
        "data.fraction": 1.0,
        "data.max_pixels": 50_000_000,
        "data.min_side": 16,
        "data.num_threads": 4,
        "data.check": "pixels",
        "data.max_bad_fraction": 0.2,
    }
    if mlp != 4:
        values["model.mlp_ratio"] = mlp
    classes: list[str] = []
    if has_decoder:
        inner = state["decoder_pred.weight"].shape[1]
        values |= {
            "model.decoder_embed_dim": inner,
            "model.decoder_depth": _depth(state, "decoder_blocks"),
            "model.decoder_num_heads": _heads(
                config, "decoder_num_attention_heads", _DECODER_HEADS, inner, 32, notes
            ),
            "model.decoder_level_token": True,
        }
    else:
        values |= {
            "model.pool": "mean" if "fc_norm.weight" in state else "cls",
            "model.probe": "head.0.running_mean" in state,
            "model.drop_path": 0.0,
            "model.head_init": 0.01,
            "search.setting": "auto",
        }
        classes = _classes(state, config)
    values |= _normalisation(config, chans, notes)
    degrade = _degradation(weights)
    if degrade:
        values["task.degrade"] = degrade
        notes.append(f"its training arguments say it learned to deblur: degradation {degrade}")
    return values, classes, notes


def _depth(state: formats.State, stem: str) -> int:
    numbers = {int(m[1]) for name in state if (m := re.match(rf"{stem}\.(\d+)\.", name))}
    if numbers != set(range(len(numbers))) or not numbers:
        raise UserError(f"of {stem} it holds only the numbers {sorted(numbers)}")
    return len(numbers)


def _heads(
    config: dict[str, Any],
    name: str,
    usual: dict[int, int],
    width: int,
    head: int,
    notes: list[str],
) -> int:
    if isinstance(config.get(name), int):
        return config[name]
    if width in usual:
        return usual[width]
    guess = max(1, width // head)
    notes.append(f"{width} wide is no usual size: attention heads assumed to be {head} wide")
    if width % guess:
        raise UserError(f"a width of {width} does not say how many heads the network has")
    return guess


def _normalisation(config: dict[str, Any], chans: int, notes: list[str]) -> dict[str, Any]:
    """From a preprocessor of Hugging Face or timm's config; ImageNet's, if there is none."""
    timm = config.get("pretrained_cfg") or {}
    mean = config.get("image_mean") or timm.get("mean")
    std = config.get("image_std") or timm.get("std")
    if mean and std and len(mean) in (1, chans) and len(std) in (1, chans):
        return {"data.mean": tuple(mean), "data.std": tuple(std)}
    notes.append(
        "the file does not say how its images were normalised: ImageNet's mean and std assumed"
    )
    return {}


def _classes(state: formats.State, config: dict[str, Any]) -> list[str]:
    head = state.get("head.weight", state.get("head.1.weight"))
    if head is None:
        return []
    names = config.get("id2label")
    if isinstance(names, dict) and len(names) == len(head):
        return [str(names[key]) for key in sorted(names, key=int)]
    names = config.get("label_names")
    if isinstance(names, list) and len(names) == len(head):
        return [str(name) for name in names]
    return [f"class {i}" for i in range(len(head))]


def _degradation(weights: Weights) -> str:
    """DeblurringMIM's models have `dmae` in their names."""
    name = str(weights.arguments.get("model", ""))
    return "blur.gaussian(sigma=1.1)" if name.startswith("dmae") else ""
