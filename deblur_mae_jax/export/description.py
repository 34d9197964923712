"""Describe a network in plain values, enough to build it elsewhere and to prepare its images."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from deblur_mae_jax.degradations import blur
from deblur_mae_jax.inference import blur_search, levels
from deblur_mae_jax.input_pipeline import crop_resize
from deblur_mae_jax.models import segmenter
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork

# Fields of a model that change its speed, not its results.
_SPEED = ("parent", "name", "dtype", "attention", "remat")


def describe(trained: TrainedNetwork) -> dict[str, Any]:
    """The fields of the model, its classes and its preprocessing, as plain values.

    This is `network` in a certificate and the argument `network` of a weight format's functions.
    """
    model, axes = trained.model, trained.network.axes
    fields = _fields(model)
    if trained.config.model.name == "segmenter":
        fields |= {
            "encoder": {"model": model.kind, "kind": "classify", "task": "classify", **_fields(model.encoder)},
            "channels": segmenter.channels_of(model),
        }
    common = {
        "model": trained.config.model.name,
        "kind": trained.network.kind,
        "axes": axes,
        "classes": trained.classes,
    }
    more = _of_images(trained) if axes == 2 else _of_volumes(trained)
    return common | fields | more


def _fields(model: Any) -> dict[str, Any]:
    """The fields of a model that change its results."""
    own = [field.name for field in dataclasses.fields(model) if field.name not in (*_SPEED, "kind", "encoder")]
    return {name: _plain(getattr(model, name)) for name in own}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _of_images(trained: TrainedNetwork) -> dict[str, Any]:
    network, config = trained.network, trained.config
    inputs, resized = network.inputs, crop_resize.resized_to(network.inputs.out)
    kind, sigma, sigmas, kernel = _blur_of(inputs.degradation)
    out = {
        "task": network.kind if network.kind in ("classify", "segment") else "masked_recon",
        "norm_pix_loss": network.task.norm_pix_loss,
        "mask_ratio": float(network.task.mask_ratio),
        "degrade": config.task.degrade,
        "degradation": kind,
        "sigma": sigma,
        "sigmas": sigmas,
        "kernel": kernel,
        "blur_site": inputs.blur_site,
        "gray_target": inputs.gray_target,
        "max_side": config.data.max_side,
        "bits16": config.data.bits16,
        "resize_to": resized[0] if resized[0] == resized[1] else list(resized),
        "mean": [float(v) for v in inputs.mean],
        "std": [float(v) for v in inputs.std],
    }
    if network.kind in ("classify", "segment"):
        out["setting"] = setting(trained)
        if out["setting"][0] == "search":
            out["high_pass"] = float(config.search.high_pass)
    return out | _infer(trained)


def _of_volumes(trained: TrainedNetwork) -> dict[str, Any]:
    data = trained.config.data
    out = {
        "task": trained.config.task.name,
        "spacing": list(data.spacing),
        "ct_window": list(data.ct_window),
    }
    return out | _infer(trained)


def _infer(trained: TrainedNetwork) -> dict[str, Any]:
    """How a segmentation predicts: the fields of `config.infer` that change a result."""
    if trained.network.kind != "segment":
        return {}
    names = ("flips", "largest_component", *(("overlap", "blending") if trained.network.axes == 3 else ()))
    return {"infer": {name: trained.config.infer[name] for name in names}}


def setting(trained: TrainedNetwork) -> list[Any]:
    """How the blur of a new image is chosen: [kind, value]. The kind is empty if there are no levels."""
    setting = blur_search.parse(
        trained.config.search.setting,
        trained.network.inputs.degradation,
        trained.searcher is not None or levels.searched(trained),
    )
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
            blur.gaussian_taps(sigma, len(row) // 2, kernel) if sigma else (np.arange(len(row)) == len(row) // 2)
            for sigma, row in zip(sigmas, taps, strict=True)
        ]
        if all(np.abs(a - b).max() < 1e-6 for a, b in zip(taps, usual, strict=True)):
            if degradation.num_levels:
                return "levels", None, sigmas, kernel
            return ("gaussian", sigmas[0], [], kernel) if sigmas[0] == sigmas[1] else other
    return other


def _view(network: dict[str, Any]) -> dict[str, Any]:
    """How an image becomes the input: whole for a segmentation, else the centre of the resized image."""
    if network["task"] == "segment":
        return {"resize_whole": network["image_size"]}
    return {"resize_short_side": network["resize_to"], "centre_crop": network["image_size"]}


def preprocessing(network: dict[str, Any]) -> dict[str, Any]:
    """The preprocessing of an image, in order.

    network: the result of `describe`.
    """
    if network["axes"] == 3:
        return {k: network[k] for k in ("spacing", "ct_window", "image_size", "infer") if k in network}
    sigma, kernel = network["sigma"], network["kernel"]
    taps = []
    if network["degradation"] == "gaussian":
        radius = blur.gaussian_radius(sigma, kernel)
        taps = blur.gaussian_taps(sigma, radius, kernel).tolist()
    return {
        "channels": network["in_chans"],
        "gray": network["gray_target"],
        "max_side": network["max_side"],
        "bits16": network["bits16"],
        "degrade": network["degrade"],
        "where": network["blur_site"],
        "sigmas": network["sigmas"],
        "taps": taps,
        **_view(network),
        "interpolation": "bicubic, antialiased",
        "scale": "gray levels / 255",
        "mean": network["mean"],
        "std": network["std"],
        **({"infer": network["infer"]} if "infer" in network else {}),
    }
