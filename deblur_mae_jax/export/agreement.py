"""Measure how much JAX and PyTorch differ with the same weights and the same inputs, in float32."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models.conv3d import channel_norm
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.weight_formats import names
from deblur_mae_jax.weight_formats.contract import Opened

MASK_RATIO = 0.75
MASKED = "reconstruction, 75 % masked"


def fixed_inputs(trained: TrainedNetwork, count: int = 4) -> dict[str, Any]:
    """The fixed network inputs, masking noise and levels of every measurement."""
    inputs = trained.network.inputs
    rng = np.random.default_rng(20230713)  # any number, always the same
    levels = inputs.degradation.num_levels if trained.network.conditioned else 0
    data = {
        "x": rng.standard_normal((count, *inputs.out, inputs.in_chans)).astype(np.float32),
        "level": np.linspace(1, levels, count).round().astype(np.int32) if levels else None,
    }
    if trained.network.kind == "reconstruct":
        data["noise"] = rng.random((count, math.prod(trained.model.mask_grid))).astype(np.float32)
    return data


# From the name of an output to the function of `Opened` that computes it.
OUTPUTS = {
    "encoder tokens": "tokens",
    "reconstruction": "reconstruct",
    MASKED: "reconstruct",
    "features": "features",
    "logits": "logits",
    "embeddings": "embed",
    "prototypes": "prototypes",
}


def in_jax(trained: TrainedNetwork, data: dict[str, Any], opened: Opened) -> dict[str, np.ndarray]:
    """The outputs that `opened` also has, computed by JAX on a CPU."""
    model = _exact(trained)
    x, level = data["x"], data["level"]
    programs = {
        "encoder tokens": lambda params: model.apply(params, x, None, level, method=model.encode),
        "reconstruction": lambda params: model.apply(params, x, level=level)[0],
        MASKED: lambda params: model.apply(params, x, noise=data["noise"], mask_ratio=MASK_RATIO, level=level)[0],
        "features": lambda params: model.apply(params, x, level=level, method=model.features),
        "logits": lambda params: model.apply(params, x, level=level)[0],
        "embeddings": lambda params: model.apply(params, x, level=level)[0],
        "prototypes": lambda params: model.apply(params, x, level=level)[1]["prototypes"],
    }
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        return {name: np.asarray(jax.jit(programs[name])({"params": trained.params})) for name in _outputs(opened)}


def _exact(trained: TrainedNetwork) -> Any:
    """The model in float32 with its simplest implementation (plain attention, no rematerialisation)."""
    field_names = {field.name for field in dataclasses.fields(trained.model)}
    plain = {"dtype": jnp.float32, "attention": "xla", "remat": False}
    return trained.model.clone(**{name: value for name, value in plain.items() if name in field_names})


def _outputs(opened: Opened) -> list[str]:
    return [name for name, function in OUTPUTS.items() if getattr(opened, function) is not None]


def in_torch(opened: Opened, data: dict[str, Any]) -> dict[str, np.ndarray]:
    """The outputs of `in_jax`, computed by an export in PyTorch."""
    x, level = np.ascontiguousarray(np.moveaxis(data["x"], -1, 1)), data["level"]
    level = None if level is None else level.astype(np.int64)
    arguments = {"reconstruction": (0.0, None), MASKED: (MASK_RATIO, data.get("noise"))}
    return {name: getattr(opened, OUTPUTS[name])(x, level, *arguments.get(name, ())) for name in _outputs(opened)}


def measure(trained: TrainedNetwork, opened: Opened) -> dict[str, dict[str, float]]:
    """For every output that both have: the largest difference and the largest value."""
    if opened.volume is not None:
        return _measure_volumes(trained, opened)
    data = fixed_inputs(trained)
    ours, theirs = in_jax(trained, data, opened), in_torch(opened, data)
    return {
        name: {
            "max_difference": float(np.abs(ours[name] - theirs[name]).max()),
            "max_value": float(np.abs(ours[name]).max()),
        }
        for name in ours
    }


def _measure_volumes(trained: TrainedNetwork, opened: Opened) -> dict[str, dict[str, float]]:
    """The same for a Swin-UNETR: compare the output and the five hidden states on one cube of noise."""
    assert opened.volume is not None
    model = _exact(trained)
    shape = list(sides.of(model.image_size, 3))
    if max(shape) < 64:
        shape = [64] * 3  # PyTorch's instance norm rejects the single voxel that a cube of 32 is reduced to
    rng = np.random.default_rng(20240703)  # any number, always the same
    x = rng.standard_normal((1, *shape, model.in_chans)).astype(np.float32)
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        volume, extra = jax.jit(model.apply)({"params": trained.params}, x)
        hidden = extra["hidden"]
        if model.normalize:
            hidden = [channel_norm(h) for h in hidden]
    theirs, states = opened.volume(np.ascontiguousarray(np.moveaxis(x, -1, 1)))
    ours = {"output": volume} | {f"hidden state {i}": h for i, h in enumerate(hidden)}
    others = [theirs, *states]
    return {
        name: {
            "max_difference": float(np.abs(np.moveaxis(np.asarray(a), -1, 1) - b).max()),
            "max_value": float(np.abs(a).max()),
        }
        for (name, a), b in zip(ours.items(), others, strict=True)
    }


def layers_in_jax(trained: TrainedNetwork, data: dict[str, Any]) -> dict[str, np.ndarray]:
    """The output of every layer under MAE's names, in network order; pre-training networks run 75 % masked."""
    model = _exact(trained)
    inputs: dict[str, Any] = {"level": data["level"]}
    if trained.network.kind == "reconstruct":
        inputs |= {"noise": data["noise"], "mask_ratio": MASK_RATIO}
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        _, seen = model.apply(
            {"params": trained.params},
            data["x"],
            **inputs,
            capture_intermediates=True,
            mutable="intermediates",
        )
    outputs = {
        names.pytorch_name((name,)): np.asarray(values["__call__"][0])
        for name, values in seen["intermediates"].items()
        if "__call__" in values and isinstance(values["__call__"][0], jax.Array)
    }
    return {name: outputs[name] for name in sorted(outputs, key=_place)}


def layers_in_torch(opened: Opened, data: dict[str, Any]) -> dict[str, np.ndarray]:
    """The outputs of the layers of an export, recorded by forward hooks."""
    outputs: dict[str, np.ndarray] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, arguments: Any, out: Any) -> None:
            value = out[0] if isinstance(out, tuple) else out
            outputs[name] = value.detach().numpy().copy()

        return hook

    handles = [layer.register_forward_hook(keep(name)) for name, layer in opened.layers.items()]
    x = np.ascontiguousarray(np.moveaxis(data["x"], -1, 1))
    level = None if data["level"] is None else data["level"].astype(np.int64)
    try:
        if opened.reconstruct is not None:
            opened.reconstruct(x, level, MASK_RATIO, data["noise"])
        elif opened.logits is not None:
            opened.logits(x, level)
        elif opened.features is not None:
            opened.features(x, level)
        else:
            raise UserError("this format has no decoder, so nothing can be masked in it")
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def compare_layers(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> list[tuple[str, float, float]]:
    """(layer, largest difference, largest value) for every layer that both have with the same shape."""
    rows = []
    for name, value in ours.items():
        other = theirs.get(name)
        if other is not None and value.ndim == other.ndim == 3:
            other = other[:, -value.shape[1] :]  # JAX drops the cls token before the last layers
        if other is not None and other.shape == value.shape:
            rows.append((name, float(np.abs(value - other).max()), float(np.abs(value).max())))
    return rows


def _place(name: str) -> tuple[int, int]:
    """Sort key: the position of a layer in the forward pass."""
    stem, _, number = name.partition(".")
    order = ("patch_embed", "blocks", "norm", "fc_norm", "decoder_embed", "decoder_blocks",
             "decoder_norm", "decoder_pred", "head")  # fmt: skip
    return order.index(stem) if stem in order else -1, int(number) if number.isdigit() else 0
