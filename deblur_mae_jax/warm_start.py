"""Which weights of a trained network another one can take: `fit`."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
from flax import traverse_util

from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.models import position
from deblur_mae_jax.network import Network
from deblur_mae_jax.pretrained import Pretrained
from deblur_mae_jax.pytorch import channels

INIT_PARTS = ("both", "encoder", "decoder")  # of a network for volumes
# Parts of a pre-training network that a classifier does not have, and parts that may start anew.
DECODER = ("decoder_", "mask_token")
HEADS = ("head", "fc_norm")
# What only a segmentation by a ViT has; other networks for labels may lack the norm.
SEGMENTER = ("segmenter", "norm/")
SSL_HEADS = ("rotation_head/", "contrastive_head/", "conv/")
CODES = ("blur_token", "level_embed")


@dataclasses.dataclass
class Fit:
    """What was taken. params: a nested dict; new: parts that start anew; rows: (what, part, detail)."""

    params: Any
    new: list[str]
    rows: list[tuple[str, str]]

    def table(self, source: Pretrained) -> list[str]:
        """Lines for the terminal."""
        origin = f" ({source.format} names)" if source.format else ""
        width = max(len(what) for what, _ in self.rows)
        lines = [f"weights of {source.path}{origin}:"]
        return lines + [f"  {what:<{width}}  {parts}" for what, parts in self.rows]


def fit(
    source: Pretrained,
    shapes: Any,
    network: Network,
    strict: bool = True,
    classes: list[str] | None = None,
    parts: str = "both",
) -> Fit:
    """The weights of `source` that `network` with parameters of these `shapes` can take.

    A head is taken only from a classifier of the same `classes`; a decoder by a pre-training network, whole or
    not at all. Another number of channels is converted (`pytorch/channels.py`); the position table is
    resized to the network's grid as MAE's code does it. parts: of a network for volumes, "encoder" or "decoder" alone
    are taken on request; its output layer only between networks for the same. Raises `UserError` listing what does not
    fit, unless `strict` is off.
    """
    model, before = network.model, source.network.model
    if "swinViT" in shapes:
        return _fit_volumes(source, shapes, strict, classes, parts)
    pretraining = hasattr(model, "decode")
    params, converted = _same_channels(source, network)
    have = traverse_util.flatten_dict(params, sep="/")
    need = traverse_util.flatten_dict(shapes, sep="/")
    left: set[str] = set()

    def leave(starts: tuple[str, ...]) -> None:
        gone = [name for name in have if name.startswith(starts)]
        left.update(part(name) for name in gone)
        for name in gone:
            del have[name]

    if source.classes != classes:
        leave(("head", "segmenter/out/"))
    if not any(k.startswith("segmenter/") for k in need):
        leave(("segmenter/",))
    resized = ""
    if pretraining:
        leave(("pos_embed", *HEADS))
        fitting = [k in need and have[k].shape == tuple(need[k].shape) for k in have if _decodes(k)]
        if not all(fitting):
            leave(DECODER)
    else:
        leave(DECODER)
        table = have.get("pos_embed")
        if table is None:  # pre-training networks have a fixed one
            table = position.sincos_2d(before.embed_dim, before.grid, model.num_prefix)[None]
        have["pos_embed"] = position.resize_table(np.asarray(table), model.grid, model.num_prefix)
        if before.grid != model.grid:
            resized = f"pos_embed from {before.grid} x {before.grid} to {model.grid} x {model.grid}"
        if "norm/scale" not in need:
            leave(("norm/",))
        if "fc_norm/scale" not in need:
            leave(("fc_norm/",))
    taken = {k: v for k, v in have.items() if k in need and v.shape == tuple(need[k].shape)}
    optional = (*DECODER, *CODES, "norm/") if pretraining else (*HEADS, *SEGMENTER)
    missing = sorted(k for k in need if k not in have and not k.startswith(optional))
    extra = sorted(k for k in have if k not in need and not k.startswith("head"))
    shape = sorted(
        f"{k} {tuple(have[k].shape)} instead of {tuple(need[k].shape)}"
        for k in have
        if k in need and k not in taken and not k.startswith("head")
    )
    _refuse(missing, extra, shape, strict)
    left |= {part(k) for k in have if k not in taken}
    fresh = {part(k) for k in need if k not in taken}
    rows = [
        ("taken", _parts({part(k) for k in taken})),
        ("converted", converted),
        ("resized", resized),
        ("left out", _parts(left)),
        ("new", _parts(fresh)),
    ]
    return Fit(
        traverse_util.unflatten_dict(taken, sep="/"),
        sorted({k.split("/")[0] for k in need} - {k.split("/")[0] for k in taken}),
        [row for row in rows if row[1]],
    )


def _fit_volumes(
    source: Pretrained, shapes: Any, strict: bool, classes: list[str] | None, parts: str
) -> Fit:
    """`fit` for a Swin-UNETR, from a Swin-UNETR or an encoder alone."""
    if parts not in INIT_PARTS:
        raise unknown("config.init_parts", parts, INIT_PARTS)
    have = traverse_util.flatten_dict(source.params, sep="/")
    need = traverse_util.flatten_dict(shapes, sep="/")
    encodes = lambda name: name.startswith("swinViT/")
    wanted = {
        k: v
        for k, v in have.items()
        if (parts != "decoder" or not encodes(k)) and (parts != "encoder" or encodes(k))
    }
    # A token that nothing of this network stands for, heads of pretext tasks, the layer of another output.
    heads = ("out/", *SSL_HEADS) if source.classes != (classes or []) else ()
    wanted = {k: v for k, v in wanted.items() if not k.startswith(heads)}
    if "swinViT/mask_token" not in need:
        wanted.pop("swinViT/mask_token", None)
    taken = {k: v for k, v in wanted.items() if k in need and v.shape == tuple(need[k].shape)}
    # What the source may lack: the output, the token, the skip of the full resolution, a whole decoder.
    optional: tuple[str, ...] = ("out/", "swinViT/mask_token", "encoder1/", *SSL_HEADS)
    if ("encoder1/layer/conv1/conv/kernel" in have) != ("encoder1/layer/conv1/conv/kernel" in need):
        # Without that skip connection the last block has half as many channels to read.
        optional = (*optional, "decoder1/")
        wanted = {k: v for k, v in wanted.items() if not k.startswith("decoder1/")}
        taken = {k: v for k, v in taken.items() if not k.startswith("decoder1/")}
    if not any(k.startswith("decoder") for k in need):  # a network of pretext tasks
        wanted = {k: v for k, v in wanted.items() if encodes(k) or k in need}
    has_decoder = any(k.startswith("decoder") for k in wanted)
    missing = sorted(
        k
        for k in need
        if k not in wanted
        and not k.startswith(optional)
        and (parts != "decoder" if encodes(k) else has_decoder)
    )
    extra = sorted(k for k in wanted if k not in need and not k.startswith(optional))
    shape = sorted(
        f"{k} {tuple(wanted[k].shape)} instead of {tuple(need[k].shape)}"
        for k in wanted
        if k in need and k not in taken
    )
    _refuse(missing, extra, shape, strict)
    rows = [
        ("taken", _parts({part(k) for k in taken})),
        ("left out", _parts({part(k) for k in have if k not in taken})),
        ("new", _parts({part(k) for k in need if k not in taken})),
    ]
    return Fit(
        traverse_util.unflatten_dict(taken, sep="/"),
        sorted({part(k) for k in need if k not in taken}),
        [row for row in rows if row[1]],
    )


def _refuse(missing: list[str], extra: list[str], shape: list[str], strict: bool) -> None:
    """Raise `UserError` with what does not fit, unless `strict` is off."""
    if not (missing or extra or shape) or not strict:
        return
    found = (("missing", missing), ("extra", extra), ("other shape", shape))
    parts = [f"{name} {_some(items)}" for name, items in found if items]
    raise UserError(
        f"config.init_from: the weights do not fit the network: {'; '.join(parts)}. "
        "--config.init_strict=False takes what fits"
    )


def _same_channels(source: Pretrained, network: Network) -> tuple[Any, str]:
    """The parameters for as many channels as `network` has, and what was done."""
    before, after = source.network.inputs, network.inputs
    if before.in_chans == after.in_chans:
        return source.params, ""
    params = channels.convert(
        source.params,
        (before.mean, before.std),
        (after.mean, after.std),
        (before.in_chans, after.in_chans),
        source.config.task.get("norm_pix_loss", False),
    )
    parts = "patch_embed, decoder_pred" if hasattr(network.model, "decode") else "patch_embed"
    return params, f"{parts} from {before.in_chans} channels to {after.in_chans}"


def _decodes(name: str) -> bool:
    return name.startswith(DECODER)


def part(name: str) -> str:
    """`blocks_3/attn/qkv/kernel` -> `blocks_3`."""
    return name.split("/")[0]


def _parts(names: set[str]) -> str:
    """Names in one line, numbered ones as a range: `blocks 0 to 11`."""
    ranges: dict[str, list[int]] = {}
    plain = []
    for name in names:
        numbered = re.fullmatch(r"(.*blocks)_(\d+)", name)
        if numbered:
            ranges.setdefault(numbered[1], []).append(int(numbered[2]))
        else:
            plain.append(name)
    spans = [f"{stem} {min(found)} to {max(found)}" for stem, found in ranges.items()]
    return ", ".join(sorted([*plain, *spans]))


def _some(items: list[str]) -> str:
    return ", ".join(items[:6]) + (f" and {len(items) - 6} more" if len(items) > 6 else "")
