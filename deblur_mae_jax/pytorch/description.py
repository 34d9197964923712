"""What a network is, in plain values: enough to build it elsewhere and to prepare its images."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from deblur_mae_jax import blur_search, transfer
from deblur_mae_jax.degradations import blur
from deblur_mae_jax.pretrained import Pretrained

_TIMM = {(192, 12, 3): "vit_tiny_patch16_224", (384, 12, 6): "vit_small_patch16_224",
         (768, 12, 12): "vit_base_patch16_224", (1024, 24, 16): "vit_large_patch16_224",
         (1280, 32, 16): "vit_huge_patch14_224"}  # fmt: skip


def describe_network(trained: Pretrained) -> dict[str, Any]:
    """What `modeling_d2mae.py` builds the network from, and how its images are prepared; plain values."""
    model, inputs, config = trained.network.model, trained.network.inputs, trained.config
    size = model.image_size
    classify = not hasattr(model, "decode")
    kind, sigma, sigmas, kernel = _blur_of(inputs.degradation)
    out = {
        "task": "classify" if classify else "masked_recon",
        "image_size": size,
        "patch_size": model.patch_size,
        "in_chans": model.in_chans,
        "embed_dim": model.embed_dim,
        "depth": model.depth,
        "num_heads": model.num_heads,
        "mlp_ratio": model.mlp_ratio,
        "conditioning": model.conditioning,
        "level_code": model.level_code,
        "decoder_level_token": getattr(model, "decoder_level_token", True),
        "norm_pix_loss": bool(config.task.get("norm_pix_loss", False)),
        "classes": trained.classes,
        "degrade": config.task.degrade,
        "degradation": kind,
        "sigma": sigma,
        "sigmas": sigmas,
        "kernel": kernel,
        "blur_site": config.task.blur_site,
        "gray_target": bool(config.data.get("gray_target", False)),
        "resize_to": round(size * 256 / 224) if size <= 224 else size,
        "mean": [float(v) for v in inputs.mean],
        "std": [float(v) for v in inputs.std],
    }
    if classify:
        return out | {"pool": model.pool, "probe": model.probe, "setting": _setting(trained)}
    return out | {
        "decoder_embed_dim": model.decoder_embed_dim,
        "decoder_depth": model.decoder_depth,
        "decoder_num_heads": model.decoder_num_heads,
    }


def _setting(trained: Pretrained) -> list[Any]:
    """How the blur of a new image is found: kind and value; an empty kind where there are no levels."""
    text = trained.config.get("search", {}).get("setting", "auto")
    can_search = transfer.copy_of_source(trained.path) is not None
    setting = blur_search.parse(text, trained.network.inputs.degradation, can_search)
    if setting is None:
        return ["", 0.0]
    return ["search" if setting.kind == "online" else setting.kind, setting.value]


def _blur_of(degradation: Any) -> tuple[str, float | None, list[float], str]:
    """("none", "gaussian", "levels" or "other", the fixed sigma, sigma by level, kernel) of a degradation."""
    other: tuple[str, float | None, list[float], str] = ("other", None, [], "")
    if degradation.identity:
        return "none", None, [], ""
    if degradation.taps is None:
        return other
    if degradation.num_levels and degradation.at_level is not None:
        levels = range(1, degradation.num_levels + 1)
        drawn = [degradation.at_level(jax.numpy.int32(level)) for level in levels]
    else:
        drawn = [degradation.draw(jax.random.key(seed)) for seed in range(2)]
    if not all("sigma" in one for one in drawn):
        return other
    sigmas = [round(float(one["sigma"]), 6) for one in drawn]
    taps = [np.asarray(degradation.taps(one)) for one in drawn]
    for kernel in blur.KERNELS:
        usual = [
            blur.gaussian_taps(sigma, len(own) // 2, kernel)
            for sigma, own in zip(sigmas, taps, strict=True)
        ]
        if all(np.abs(a - b).max() < 1e-6 for a, b in zip(taps, usual, strict=True)):
            if degradation.num_levels:
                return "levels", None, sigmas, kernel
            return ("gaussian", sigmas[0], [], kernel) if sigmas[0] == sigmas[1] else other
    return other


def opens_with(trained: Pretrained, format: str) -> dict[str, Any]:
    """The library, class or model name, and arguments that open an export of this format."""
    model = trained.network.model
    classify = not hasattr(model, "decode")
    if format == "hf":
        if not classify:
            return {"library": "transformers", "class": "ViTMAEForPreTraining"}
        kind = "Beit" if model.pool == "mean" else "ViT"
        return {"library": "transformers", "class": f"{kind}ForImageClassification"}
    if format == "timm":
        size = (model.embed_dim, model.depth, model.num_heads)
        arguments: dict[str, Any] = {
            "img_size": model.image_size,
            "patch_size": model.patch_size,
            "in_chans": model.in_chans,
            "num_classes": model.num_classes if classify else 0,
            "global_pool": "avg" if classify and model.pool == "mean" else "token",
        }
        if size not in _TIMM:
            arguments |= dict(zip(("embed_dim", "depth", "num_heads"), size, strict=True))
        if model.mlp_ratio != 4:
            arguments["mlp_ratio"] = model.mlp_ratio
        name = _TIMM.get(size, "vit_base_patch16_224")
        return {"library": "timm", "model": name, "arguments": arguments}
    return {"library": "torch", "class": "D2MAE", "file": "modeling_d2mae.py"}


def preprocessing(trained: Pretrained, network: dict[str, Any]) -> dict[str, Any]:
    """What is done to an image before the network, in this order."""
    data, fixed = trained.config.data, network["degradation"] == "gaussian"
    sigma, kernel = network["sigma"], network["kernel"]
    taps = blur.gaussian_taps(sigma, blur.gaussian_radius(sigma, kernel), kernel) if fixed else None
    return {
        "channels": network["in_chans"],
        "gray": network["gray_target"],
        "max_side": data.get("max_side", 0),
        "bits16": data.get("bits16", "minmax"),
        "degrade": network["degrade"],
        "where": network["blur_site"],
        "sigmas": network["sigmas"],
        "taps": [] if taps is None else taps.tolist(),
        "resize_short_side": network["resize_to"],
        "interpolation": "bicubic, antialiased",
        "centre_crop": network["image_size"],
        "scale": "grey levels / 255",
        "mean": network["mean"],
        "std": network["std"],
    }
