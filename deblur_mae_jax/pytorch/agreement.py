"""How far JAX and PyTorch are apart, measured: the same weights, the same inputs, float32."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models.conv3d import channel_norm
from deblur_mae_jax.pretrained import Pretrained
from deblur_mae_jax.pytorch import names
from deblur_mae_jax.pytorch.torch_side import Opened

MASK_RATIO = 0.75


def fixed_inputs(trained: Pretrained, count: int = 4) -> dict[str, Any]:
    """Network inputs, masking noise and levels that are always the same."""
    model = trained.network.model
    rng = np.random.default_rng(20230713)  # any number, always the same
    size, chans = model.image_size, model.in_chans
    levels = trained.network.inputs.degradation.num_levels if model.conditioning != "none" else 0
    return {
        "x": rng.standard_normal((count, size, size, chans)).astype(np.float32),
        "noise": rng.random((count, model.grid**2)).astype(np.float32),
        "level": np.linspace(1, levels, count).round().astype(np.int32) if levels else None,
    }


def in_jax(trained: Pretrained, data: dict[str, Any]) -> dict[str, np.ndarray]:
    """What the network gives in JAX on a CPU: tokens and reconstructions, or features and logits."""
    model = trained.network.model.clone(dtype=jnp.float32, attention="xla", remat=False)
    params, x, level = {"params": trained.params}, data["x"], data["level"]
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        if not hasattr(model, "decode"):
            out = {"features": model.apply(params, x, level, method=model.features)}
            if model.num_classes:
                out["logits"] = model.apply(params, x, level)[0]
        else:
            out = {
                "encoder tokens": model.apply(params, x, None, level, method=model.encode),
                "reconstruction": model.apply(params, x, None, 0.0, level)[0],
                "reconstruction, 75 % masked": model.apply(
                    params, x, data["noise"], MASK_RATIO, level
                )[0],
            }
        return jax.tree.map(np.asarray, out)


def in_torch(opened: Opened, data: dict[str, Any]) -> dict[str, np.ndarray]:
    """The same of an export, as far as its format has the parts."""
    x, level = np.ascontiguousarray(np.moveaxis(data["x"], -1, 1)), data["level"]
    level = None if level is None else level.astype(np.int64)
    out = {}
    if opened.tokens is not None:
        out["encoder tokens"] = opened.tokens(x, level)
    if opened.reconstruct is not None:
        out["reconstruction"] = opened.reconstruct(x, level, 0.0, None)
        out["reconstruction, 75 % masked"] = opened.reconstruct(x, level, MASK_RATIO, data["noise"])
    if opened.features is not None:
        out["features"] = opened.features(x, level)
    if opened.logits is not None:
        out["logits"] = opened.logits(x, level)
    return out


def measure(trained: Pretrained, opened: Opened) -> dict[str, dict[str, float]]:
    """Per output that both have: the largest difference, and the largest value beside it."""
    if opened.volume is not None:
        return _measure_volumes(trained, opened)
    data = fixed_inputs(trained)
    ours, theirs = in_jax(trained, data), in_torch(opened, data)
    return {
        name: {
            "max_difference": float(np.abs(ours[name] - theirs[name]).max()),
            "max_value": float(np.abs(ours[name]).max()),
        }
        for name in ours
        if name in theirs
    }


def _measure_volumes(trained: Pretrained, opened: Opened) -> dict[str, dict[str, float]]:
    """The same of a Swin-UNETR: the output and the five hidden states, on one cube of noise."""
    assert opened.volume is not None
    model = trained.network.model.clone(dtype=jnp.float32, remat=False)
    side = max(
        model.image_size, 64
    )  # PyTorch's instance norm refuses the single voxel that 32 end in
    rng = np.random.default_rng(20240703)  # any number, always the same
    x = rng.standard_normal((1, side, side, side, model.in_chans)).astype(np.float32)
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        out, hidden = jax.jit(model.apply)({"params": trained.params}, x)
        if model.normalize:
            hidden = [channel_norm(h) for h in hidden]
    theirs, states = opened.volume(np.ascontiguousarray(np.moveaxis(x, -1, 1)))
    ours = {"output": out} | {f"hidden state {i}": h for i, h in enumerate(hidden)}
    others = [theirs, *states]
    return {
        name: {
            "max_difference": float(np.abs(np.moveaxis(np.asarray(a), -1, 1) - b).max()),
            "max_value": float(np.abs(a).max()),
        }
        for (name, a), b in zip(ours.items(), others, strict=True)
    }


def layers_in_jax(trained: Pretrained, data: dict[str, Any]) -> dict[str, np.ndarray]:
    """What every layer gives, under MAE's names, in the order of the network; 75 % masked in pre-training."""
    model = trained.network.model.clone(dtype=jnp.float32, attention="xla", remat=False)
    inputs: tuple[Any, ...] = (data["x"], data["level"])
    if hasattr(model, "decode"):
        inputs = (data["x"], data["noise"], MASK_RATIO, data["level"])
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        _, seen = model.apply(
            {"params": trained.params}, *inputs, capture_intermediates=True, mutable="intermediates"
        )
    found = {
        names.pytorch_name((name,)): np.asarray(values["__call__"][0])
        for name, values in seen["intermediates"].items()
        if "__call__" in values and isinstance(values["__call__"][0], jax.Array)
    }
    return {name: found[name] for name in sorted(found, key=_place)}


def layers_in_torch(opened: Opened, data: dict[str, Any]) -> dict[str, np.ndarray]:
    """The same of an export, by hooks."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, arguments: Any, out: Any) -> None:
            value = out[0] if isinstance(out, tuple) else out
            found[name] = value.detach().numpy().copy()

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
    return found


def compare_layers(
    ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> list[tuple[str, float, float]]:
    """(layer, largest difference, largest value) of the layers that both have in the same shape."""
    rows = []
    for name, value in ours.items():
        other = theirs.get(name)
        if other is not None and value.ndim == other.ndim == 3:
            other = other[:, -value.shape[1] :]  # JAX drops the cls token before the last layers
        if other is not None and other.shape == value.shape:
            rows.append((name, float(np.abs(value - other).max()), float(np.abs(value).max())))
    return rows


def _place(name: str) -> tuple[int, int]:
    """Sorts layers as they are run."""
    stem, _, number = name.partition(".")
    order = ("patch_embed", "blocks", "norm", "fc_norm", "decoder_embed", "decoder_blocks",
             "decoder_norm", "decoder_pred", "head")  # fmt: skip
    return order.index(stem) if stem in order else -1, int(number) if number.isdigit() else 0
