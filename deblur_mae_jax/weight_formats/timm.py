"""timm's `VisionTransformer`: encoder and head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deblur_mae_jax import sides
from deblur_mae_jax.weight_formats import torch_calls, vit
from deblur_mae_jax.weight_formats.contract import Converted, Opened, State
from deblur_mae_jax.workdir import run_folder

NAME = "timm"
TITLE = "timm"
MODELS = (*vit.MODELS, "siamese_vit", "vit_diffmae", "vit_dino")
NEEDS = ("torch", "timm")
infer: Callable[..., Any] = vit.infer
to_ours: Callable[[State], State] = vit.checked
_MODELS = {(192, 12, 3): "vit_tiny_patch16_224", (384, 12, 6): "vit_small_patch16_224",
           (768, 12, 12): "vit_base_patch16_224", (1024, 24, 16): "vit_large_patch16_224",
           (1280, 32, 16): "vit_huge_patch14_224"}  # fmt: skip


def matches(names: set[str]) -> bool:
    """A ViT without anything that timm lacks."""
    return vit.plain(names) and not vit.has_levels(names) and not vit.has_decoder(names)


def from_ours(network: dict[str, Any], state: State) -> Converted:
    """Remove the decoder."""
    vit.without_levels(network, NAME)
    if network.get("kind") == "contrast":
        return Converted(vit.encoder_of(state, "head"), [vit.NO_PROJECTOR])
    if network.get("kind") == "distill":
        return Converted(vit.encoder_of(state, "mask_token", "teacher.backbone."), [vit.NO_HEADS])
    left = [] if network["task"] == "classify" else [
        "the decoder: timm has no place for it"
        + (" (diffmae has)" if network.get("model") == "vit_diffmae" else " (mae, hf and d2mae have)")
    ]  # fmt: skip
    folded = vit.fold_probe(state)
    changed = [] if folded is state else [vit.PROBE_FOLDED]
    return Converted({k: v for k, v in folded.items() if not vit.DECODER.match(k)}, left, changed)


def opens_with(network: dict[str, Any]) -> dict[str, Any]:
    """`timm.create_model` with a model's name and arguments."""
    classify = network["task"] == "classify"
    size = (network["embed_dim"], network["depth"], network["num_heads"])
    arguments: dict[str, Any] = {
        "img_size": network["image_size"],
        "patch_size": network["patch_size"],
        "in_chans": network["in_chans"],
        "num_classes": network["num_classes"] if classify else 0,
        "global_pool": "avg" if classify and network["pool"] == "mean" else "token",
    }
    if size not in _MODELS:
        arguments |= dict(zip(("embed_dim", "depth", "num_heads"), size, strict=True))
    if network["mlp_ratio"] != 4:
        arguments["mlp_ratio"] = network["mlp_ratio"]
    return {
        "library": "timm",
        "model": _MODELS.get(size, "vit_base_patch16_224"),
        "arguments": arguments,
    }


def companions(folder: Path, network: dict[str, Any], opens: dict[str, Any], weights: str) -> None:
    """timm's `config.json`."""
    write_config(folder, network, opens, (network["embed_dim"], "patch_embed.proj", "head"))


def write_config(folder: Path, network: dict[str, Any], opens: dict[str, Any], parts: tuple[int, str, str]) -> None:
    """Write timm's `config.json`.

    parts: the number of features, and the names of the first layer and of the classifier.
    """
    size, to = sides.of(network["image_size"]), sides.of(network["resize_to"])
    arguments = dict(opens["arguments"])
    labels = {"label_names": network["classes"]} if network["classes"] else {}
    config = {
        "architecture": opens["model"],
        "num_classes": arguments.pop("num_classes"),
        "global_pool": arguments.get("global_pool", "avg"),
        "num_features": parts[0],
        "model_args": arguments,
        **labels,
        "pretrained_cfg": {
            "input_size": [network["in_chans"], *size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": size[0] / to[0],
            "crop_mode": "center",
            "mean": network["mean"],
            "std": network["std"],
            "num_classes": opens["arguments"]["num_classes"],
            "first_conv": parts[1],
            "classifier": parts[2],
        },
    }
    run_folder.write_json(folder / "config.json", config)


MEAN = "features = model.forward_features(x)[:, 1:].mean(1)  # those of dm.encode"
POOLED = "features = model.forward_head(model.forward_features(x), pre_logits=True)  # those of dm.encode"


def snippet(certificate: dict[str, Any]) -> list[str]:
    """`timm.create_model`."""
    opens = certificate["opens_with"]
    arguments = ", ".join(f"{k}={v!r}" for k, v in opens["arguments"].items())
    features = MEAN if certificate["network"]["model"] in vit.PATCH_MEANS else POOLED
    return [
        "import timm, torch",
        *torch_calls.read_lines(certificate["file"]["name"]),
        f'model = timm.create_model("{opens["model"]}", pretrained=False, {arguments}).eval()',
        "model.load_state_dict(state, strict=True)",
        *([] if opens["arguments"]["num_classes"] else [features]),
    ]


def open(file: Path, certificate: dict[str, Any]) -> Opened:
    """Open it with timm; every name and shape must match."""
    import timm

    opens = certificate["opens_with"]
    model = timm.create_model(opens["model"], pretrained=False, **opens["arguments"])
    model.load_state_dict(torch_calls.state_of(file), strict=True)
    model.eval()
    layers = {n: module for n, module in model.named_modules() if torch_calls.is_layer(n)}
    functions: dict[str, Any] = {"tokens": lambda x, level: model.forward_features(x)}
    network = certificate["network"]
    if network.get("kind") in ("contrast", "distill") or network["task"] == "classify":
        functions = {"features": lambda x, level: model.forward_head(model.forward_features(x), pre_logits=True)}
    if opens["arguments"]["num_classes"]:
        functions = {
            "features": lambda x, level: model.forward_head(model.forward_features(x), pre_logits=True),
            "logits": lambda x, level: model(x),
        }
    return Opened(model, layers=layers, **torch_calls.calls(**functions))
