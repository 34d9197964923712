"""The picture of a study: methods in the order of their means, with every network, and their differences."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
from matplotlib.figure import Figure

WIDTH = 36  # characters of a line of a name; longer lines leave no room for the panels

# The measures that a picture can be of, the first that a study has is shown.
MEASURES = {"auroc": "AUROC, percent", "dice": "Dice, percent", "accuracy": "accuracy, percent"}
_INK, _REFERENCE, _LINE = "#4477aa", "#222222", "#cc3311"


def measure_of(found: list[dict[str, Any]]) -> str:
    """The measure that is shown; "" if no row has one."""
    return next((name for name in MEASURES if any(name in row for row in found)), "")


def figure(found: list[dict[str, Any]], single: dict[str, list[float]], reference: str) -> Figure:
    """Methods, the best above: mean and interval, one dot per network, and the difference from the reference.

    found: the rows of `study.rows`.
    single: by method, the measure of each of its networks, in percent.
    reference: the method that the others are compared with; "": none.
    """
    measure = measure_of(found)
    shown = sorted((row for row in found if measure in row), key=lambda row: row[measure]["mean"])
    compared = any(f"{measure}_difference" in row for row in shown)
    names = [row["method"] + (", the reference" if row["method"] == reference else "") for row in shown]
    names = [textwrap.fill(name, WIDTH) for name in names]
    lines = max((name.count("\n") + 1 for name in names), default=1)
    height = 1.2 + max(0.36, 0.17 * lines + 0.04) * len(shown)
    out = Figure(figsize=(9 if compared else 6, height), layout="constrained")
    axes = out.subplots(1, 2 if compared else 1, sharey=True, squeeze=False)[0]
    for place, row in enumerate(shown):
        own = row["method"] == reference
        colour = _REFERENCE if own else _INK
        dots = single.get(row["method"], [])
        axes[0].plot(dots, np.full(len(dots), place - 0.22), "o", color=colour, alpha=0.35, markersize=3)
        _bar(axes[0], place, row[measure]["mean"], row[measure], colour)
        difference = row.get(f"{measure}_difference")
        if difference is not None:
            _bar(axes[1], place, difference["value"], difference, colour)
    axes[0].set_yticks(range(len(shown)), names, fontsize=9)
    axes[0].set_xlabel(f"{MEASURES[measure]}\nmean and 95 % interval; dots: single networks", fontsize=9)
    if compared:
        axes[1].axvline(0, color=_LINE, linewidth=1)
        axes[1].set_xlabel(f"minus {reference}, percent points\nwith its 95 % interval, not adjusted", fontsize=9)
    for axis in axes:
        axis.grid(axis="x", color="#dddddd", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    return out


def _bar(axis: Any, place: int, value: float, interval: dict[str, float], colour: str) -> None:
    axis.plot([value], [place], "D", color=colour, markersize=5)
    if np.isfinite(interval["low"]):
        axis.plot([interval["low"], interval["high"]], [place, place], color=colour, linewidth=1.6)
