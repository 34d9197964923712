"""Select the weights of a trained network that fit another network."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
from flax import traverse_util

from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.models.contract import Flat, Rules
from deblur_mae_jax.network import Network
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.weight_formats import channels

PARTS = ("both", "encoder", "decoder")


@dataclasses.dataclass
class Fit:
    """The weights that fit.

    params: nested dict of the weights.
    new: top-level parameters that are initialised from scratch, or in part.
    rows: pairs (action, parameters), for the user.
    """

    params: Any
    new: list[str]
    rows: list[tuple[str, str]]

    def table(self, source: TrainedNetwork) -> list[str]:
        """Lines for the terminal."""
        origin = f" ({source.format} names)" if source.format else ""
        width = max(len(what) for what, _ in self.rows)
        lines = [f"weights of {source.place or source.path}{origin}:"]
        return lines + [f"  {what:<{width}}  {names}" for what, names in self.rows]


def fit(
    source: TrainedNetwork,
    shapes: Any,
    network: Network,
    strict: bool = True,
    classes: list[str] | None = None,
    parts: str = "both",
) -> Fit:
    """Select the weights of `source` that fit `network` with parameters of these `shapes`.

    Channels are converted (`weight_formats/channels.py`); the rest follows the rules of the model
    (`models/contract.py`). Raises `UserError` that lists the weights that do not fit.
    strict: refuse weights that do not fit; if false, use only those that fit.
    classes: class names of the new run; heads are used only if the classes of `source` are the same.
    parts: "encoder", "decoder" or "both".
    """
    if parts not in PARTS:
        raise unknown("config.init_parts", parts, PARTS)
    rules = network.rules
    weights, model, own, outer = _encoder_of(source, network)
    if strict:
        _require_same_heads(source, model, network, parts)
    weights, converted = _same_channels(weights, source, network, own)
    needed = traverse_util.flatten_dict(shapes, sep="/")
    before = {top(name) for name in weights}
    if source.classes != (classes or []):
        weights = {k: v for k, v in weights.items() if not k.startswith(rules.heads)}
    if parts != "both":
        weights = {k: v for k, v in weights.items() if own.encodes(k) == (parts == "encoder")}
    weights, optional, resized = rules.adapt(weights, needed, model, network.model)
    if parts == "decoder":  # the adapted weights must not include the encoder
        weights = {k: v for k, v in weights.items() if not rules.encodes(k)}
    taken = {k: v for k, v in weights.items() if k in needed and v.shape == tuple(needed[k].shape)}
    wanted = {k for k in needed if parts == "both" or rules.encodes(k) == (parts == "encoder")}
    misfits = {
        "missing": sorted(k for k in wanted if k not in weights and not optional(k)),
        "extra": sorted(k for k in weights if k not in needed and not k.startswith(rules.heads)),
        "other shape": sorted(
            f"{k} {tuple(weights[k].shape)} instead of {tuple(needed[k].shape)}"
            for k in weights
            if k in needed and k not in taken and not k.startswith(rules.heads)
        ),
    }
    if strict:
        _require_all(misfits, bool(taken))
    _require_some(taken, source, network)
    used, fresh = {top(k) for k in taken}, {top(k) for k in needed if k not in taken}
    rows = [
        ("taken", _listed(used)),
        ("converted", converted),
        ("normalised", _other_normalisation(source, network)),
        ("resized", resized),
        ("left out", _listed((before | outer) - used | {top(k) for k in weights if k not in taken})),
        ("new", _listed(fresh)),
    ]
    return Fit(
        traverse_util.unflatten_dict(taken, sep="/"),
        sorted(fresh),
        [row for row in rows if row[1]],
    )


def _require_same_heads(source: TrainedNetwork, model: Any, network: Network, parts: str) -> None:
    """Raise `UserError` if blocks have another number of attention heads, which changes no shape.

    model: the network of `source`, or the encoder in it.
    """
    if any("attention heads" in note for note in source.notes):  # assumed for a file that does not record them
        return
    mine, others = (
        _with_inner(net, rules) for net, rules in ((network.model, network.rules), (model, source.network.rules))
    )
    fields = {"encoder": ("num_heads",), "decoder": ("decoder_num_heads",)}
    names = (*fields["encoder"], *fields["decoder"]) if parts == "both" else fields[parts]
    for name in names:
        theirs, ours = others.get(name), mine.get(name)
        if theirs is not None and ours is not None and theirs != ours:
            raise UserError(
                f"config.init_from: '{source.place or source.path}' has {theirs} attention heads, and this network "
                f"{ours}: with them the same weights compute something else. Set config.model.{name}={theirs}; "
                "--config.init_strict=False takes the weights in spite of it"
            )


def _with_inner(model: Any, rules: Rules) -> dict[str, Any]:
    """The fields of a network, and of the encoder that it contains."""
    fields = dict(vars(model))
    if rules.inner is not None and "encoder" in fields:
        fields = vars(rules.inner({}, model)[1]) | fields
    return fields


def _other_normalisation(source: TrainedNetwork, network: Network) -> str:
    """In words, that images were normalised in another way when the weights were trained; "" if they were not."""
    if network.axes != 2 or source.network.axes != 2:
        return ""
    before, after = source.network.inputs, network.inputs
    theirs, ours = (np.array([one.mean, one.std], float) for one in (before, after))
    if theirs.shape != ours.shape or np.allclose(theirs, ours, atol=1e-3):
        return ""
    return (
        f"differently: the weights saw images with mean {theirs[0].round(3).tolist()} and std "
        f"{theirs[1].round(3).tolist()}, this run uses {ours[0].round(3).tolist()} and {ours[1].round(3).tolist()} "
        "(config.data.mean, config.data.std)"
    )


def _require_some(taken: Flat, source: TrainedNetwork, network: Network) -> None:
    """Raise `UserError` if no weight fits, also where `init_strict` is off."""
    if not taken:
        raise UserError(
            f"config.init_from: no weight of '{source.path}', a {source.config.model.name}, fits this network "
            f"({network.model.__class__.__name__}): it would start from scratch"
        )


def _require_all(misfits: dict[str, list[str]], some: bool) -> None:
    """Raise `UserError` that lists the weights that do not fit, if there are any.

    some: whether others fit.
    """
    if any(misfits.values()):
        listed = "; ".join(f"{what} {_some(names)}" for what, names in misfits.items() if names)
        advice = "--config.init_strict=False uses only the weights that fit" if some else "None of the weights fits"
        raise UserError(f"config.init_from: the weights do not fit the network: {listed}. {advice}")


def _encoder_of(source: TrainedNetwork, network: Network) -> tuple[Flat, Any, Rules, set[str]]:
    """The weights of `source`, or of the encoder in it that `network` can load, with its model and rules.

    Returned last are the top-level names of all weights of `source`.
    """
    weights = traverse_util.flatten_dict(source.params, sep="/")
    model, own, outer = source.network.model, source.network.rules, {top(name) for name in weights}
    if own.inner is not None and type(model) is not type(network.model):
        weights, model, own = own.inner(weights, model)
    return weights, model, own, outer


def _same_channels(weights: Flat, source: TrainedNetwork, network: Network, own: Rules) -> tuple[Flat, str]:
    """Return the weights for the number of channels of `network`, and rows that describe the conversion.

    own: the rules of the network that has the weights.
    """
    before, after = source.network.inputs, network.inputs
    if before.in_chans == after.in_chans:
        return weights, ""
    norm_pix = source.network.task.norm_pix_loss
    tree = channels.convert(traverse_util.unflatten_dict(weights, sep="/"), before, after, norm_pix, own)
    names = [name for name in (top(own.stem), *channels.DECODERS) if name in tree]
    text = f"{', '.join(names)} from {before.in_chans} channels to {after.in_chans}"
    return traverse_util.flatten_dict(tree, sep="/"), text


def top(name: str) -> str:
    """`blocks_3/attn/qkv/kernel` -> `blocks_3`."""
    return name.split("/")[0]


def _listed(names: set[str]) -> str:
    """Join names in one line and write numbered ones as a range: `blocks 0 to 11`."""
    ranges: dict[str, list[int]] = {}
    plain = []
    for name in names:
        numbered = re.fullmatch(r"(.*blocks)_(\d+)", name)
        if numbered:
            ranges.setdefault(numbered[1], []).append(int(numbered[2]))
        else:
            plain.append(name)
    spans = [
        f"{stem} {min(numbers)}" + (f" to {max(numbers)}" if len(numbers) > 1 else "")
        for stem, numbers in ranges.items()
    ]
    return ", ".join(sorted([*plain, *spans]))


def _some(items: list[str]) -> str:
    return ", ".join(items[:6]) + (f" and {len(items) - 6} more" if len(items) > 6 else "")
