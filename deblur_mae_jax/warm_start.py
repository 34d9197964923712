"""Which weights of a trained network another one can take: `fit`."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
from flax import traverse_util

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import position
from deblur_mae_jax.network import Network
from deblur_mae_jax.pretrained import Pretrained
from deblur_mae_jax.pytorch import channels

# Parts of a pre-training network that a classifier does not have, and parts that may start anew.
DECODER = ("decoder_", "mask_token")
HEADS = ("head", "fc_norm")
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
) -> Fit:
    """The weights of `source` that `network` with parameters of these `shapes` can take.

    A head is taken only from a classifier of the same `classes`; a decoder by a pre-training network, whole or
    not at all. Another number of channels is converted (`pytorch/channels.py`); the position table is
    resized to the network's grid as MAE's code does it. Raises `UserError` listing what does not fit, unless
    `strict` is off.
    """
    model, before = network.model, source.network.model
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
        leave(("head",))
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
    optional = (*DECODER, *CODES, "norm/") if pretraining else HEADS
    missing = sorted(k for k in need if k not in have and not k.startswith(optional))
    extra = sorted(k for k in have if k not in need and not k.startswith("head"))
    shape = sorted(
        f"{k} {tuple(have[k].shape)} instead of {tuple(need[k].shape)}"
        for k in have
        if k in need and k not in taken and not k.startswith("head")
    )
    if (missing or extra or shape) and strict:
        parts = [
            f"{name} {_some(items)}"
            for name, items in (("missing", missing), ("extra", extra), ("other shape", shape))
            if items
        ]
        raise UserError(
            f"config.init_from: the weights do not fit the network: {'; '.join(parts)}. "
            "--config.init_strict=False takes what fits"
        )
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
