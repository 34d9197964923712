"""Ensembles of a study: the mean probabilities of all networks of a method, and those of two methods."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.reports.study_network import Network


def add(networks: list[Network], facts: dict[str, Any]) -> tuple[list[Network], dict[str, Any]]:
    """The networks and facts of a study, with a row for each ensemble.

    `facts["ensembles"]` names methods; `facts["averaged"]` holds pairs of methods, whose ensembles count the same. An
    ensemble has one network per fold, so its interval covers the patients alone. Methods with one network per fold,
    and segmenters, have none.
    """
    methods, out = {}, list(networks)
    for name, about in facts["methods"].items():
        methods[name] = about
        own = [n for n in networks if n.method == name and n.classes] if name in facts.get("ensembles", []) else []
        folds = {fold: [n for n in own if n.fold == fold] for fold in sorted({n.fold for n in own})}
        sizes = sorted({len(members) for members in folds.values()})
        if not sizes or sizes == [1]:
            continue
        count = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        title = f"{name}, ensemble of {count}"
        methods[title] = about | {"paper": {}, "fixed": True}
        out += [_mean(title, members) for members in folds.values()]
    for pair in facts.get("averaged", []):
        title = " and ".join(pair) + ", averaged"
        leakage = any(methods[name]["leakage"] for name in pair)
        methods[title] = {"state": "run", "leakage": leakage, "paper": {}, "fixed": True}
        parts = [[n for n in networks if n.method == name and n.classes] for name in pair]
        for name, part in zip(pair, parts, strict=True):
            if not part:
                raise UserError(f"no mean of {title}: '{name}' has no predictions of a classifier")
        for fold in sorted(set.intersection(*({n.fold for n in part} for part in parts))):
            halves = [_mean(title, [n for n in part if n.fold == fold]) for part in parts]
            out.append(_mean(title, halves))
    return out, facts | {"methods": methods}


def _mean(title: str, members: list[Network]) -> Network:
    """The ensemble of networks that were judged on the same images. Raises `UserError` if they were not."""
    first = members[0]
    columns = {"label": first.columns["label"]}
    places = [{image: i for i, image in enumerate(n.images)} for n in members]
    for network, place in zip(members, places, strict=True):
        lacking = set(first.images) ^ set(place)
        if lacking:
            raise UserError(
                f"no ensemble of {first.method}: '{min(lacking)}' was judged by only one of the networks of seed "
                f"{first.seed} and seed {network.seed}, which were run on different images"
            )
    orders = [np.array([place[image] for image in first.images]) for place in places]
    for name in (f"p_{label}" for label in first.classes):
        found = [n.columns[name][order] for n, order in zip(members, orders, strict=True)]
        columns[name] = np.mean(found, axis=0)
    return dataclasses.replace(first, method=title, training="", seed=0, columns=columns)
