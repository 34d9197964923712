"""Convert networks between one gray channel and three colour channels.

The conversion preserves the network's output for a gray image up to rounding. With the image's gray level g, old
inputs x_c = (g - mean_c) / std_c and new inputs likewise, the patch embedding is refitted to

    K'[p, c'] = sum_c K[p, c] / std_c * std'_c' / C'     (3 -> 1: the sum over colours; 1 -> 3: a third each)
    b'        = b + sum_pc K[p, c] / std_c * (mean(mean') - mean_c)

and the decoder predicts, for every new channel, the mean of the colours it predicted before.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import traverse_util

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline.images import ImageInputs
from deblur_mae_jax.models.contract import Rules

# Layers that predict pixels: MAE's, and SimMIM's, whose results are sorted by channel first.
DECODERS, CHANNELS_FIRST = ("decoder_pred", "decoder_0"), ("decoder_0",)


def convert(params: Any, old: ImageInputs, new: ImageInputs, norm_pix: bool, rules: Rules | None = None) -> Any:
    """Convert a parameter tree from the channels of `old` to those of `new`.

    old, new: input pipelines; only their channels and normalisation are used.
    rules: those of the network; None: a ViT's. A ResNet has no bias, so b' - b is taken from the mean of its first
        norm; where its first layer sees the padding, at the border, results may then differ.
    norm_pix: whether the decoder predicts normalised patches; their colours are alike, so their mean is used unchanged.
    Raises `UserError` for a network without a patch embedding.
    """
    flat = dict(traverse_util.flatten_dict(params, sep="/"))
    before, after = old.in_chans, new.in_chans
    stem, (shifted, sign) = (rules or Rules()).stem, (rules or Rules()).shift
    if stem not in flat:
        raise UserError(
            f"config.model.in_chans={after}: the weights are for {before} channels, and this network has no patch "
            "embedding that could be converted"
        )
    mean, std = _wide(old.mean, before), _wide(old.std, before)
    new_mean, new_std = _wide(new.mean, after), _wide(new.std, after)

    kernel = np.asarray(flat[stem], np.float64)  # (P, P, C, D)
    per_level = kernel / std[:, None]
    flat[stem] = _float32(per_level.sum(axis=2, keepdims=True) * (new_std / after)[:, None])
    shift = (per_level * (new_mean.mean() - mean)[:, None]).sum(axis=(0, 1, 2))
    flat[shifted] = _float32(flat[shifted] + sign * shift)

    for layer in DECODERS:
        for name in (f"{layer}/kernel", f"{layer}/bias"):
            if name not in flat:
                continue
            value = np.asarray(flat[name], np.float64)
            if layer in CHANNELS_FIRST:
                value = np.moveaxis(value.reshape(*value.shape[:-1], before, -1), -2, -1)
            else:
                value = value.reshape(*value.shape[:-1], -1, before)
            if norm_pix:
                level = np.repeat(value.mean(axis=-1, keepdims=True), after, axis=-1)
            else:
                offset = name.endswith("bias")
                gray = (value * std + mean * offset).mean(axis=-1, keepdims=True)
                level = (gray - new_mean * offset) / new_std
            level = np.moveaxis(level, -1, -2) if layer in CHANNELS_FIRST else level
            flat[name] = _float32(level.reshape(*level.shape[:-2], -1))
    return traverse_util.unflatten_dict(flat, sep="/")


def not_converted(params: Any, shapes: Any) -> list[str]:
    """The parameters that have another shape than the network with the new channels needs."""
    got, needed = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, shapes))
    return sorted(name for name, value in needed.items() if name in got and got[name].shape != value.shape)


def _wide(values: tuple[float, ...], channels: int) -> np.ndarray:
    return np.broadcast_to(np.asarray(values, np.float64), (channels,))


def _float32(value: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(value, np.float32)
