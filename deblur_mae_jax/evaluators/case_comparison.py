"""Two segmentations of the same cases: which is better, and could this set have shown it?"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import stats

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.evaluators import statistics
from deblur_mae_jax.evaluators.cases import Cases

COMPARED = ("dice", "hd95", "surface_distance")


def aligned(a: Cases, b: Cases, names: tuple[str, str]) -> tuple[Cases, Cases]:
    """The same cases in the same order. Raises `UserError` if they are not the same."""
    if a.labels != b.labels:
        raise UserError(f"{names[0]} and {names[1]} have other labels: {a.labels}, {b.labels}")
    if set(a.names) != set(b.names):
        both = len(set(a.names) & set(b.names))
        raise UserError(
            f"{names[0]} and {names[1]} were not judged on the same images ({len(a)} and {len(b)}, {both} in common): "
            "a paired comparison needs the same ones"
        )
    first, second = a.where(np.argsort(a.names)), b.where(np.argsort(b.names))
    return first, second


def compare(
    a: Cases, b: Cases, names: tuple[str, str], resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Mean differences over cases (each the mean of its labels), for each of `COMPARED`.

    `<measure>`: the mean of a - b; `<measure>_interval`: BCa bootstrap over patients; `wilcoxon`: two-sided p of the
    signed-rank test of Dice over patients (means of their cases); `smallest`: the difference in Dice that this
    set would have shown with 80 % power at the 5 % level.
    """
    first, second = aligned(a, b, names)
    patients, which = np.unique(first.patients, return_inverse=True)
    row: dict[str, Any] = {
        "a": names[0], "b": names[1], "images": len(first), "patients": len(patients),
        "unit": "patient" if len(patients) < len(first) else "image",
    }  # fmt: skip
    for measure in COMPARED:
        difference = first.mean_of_labels(measure) - second.mean_of_labels(measure)
        known = np.isfinite(difference)
        row[measure] = float(difference[known].mean()) if known.any() else float("nan")
        row[f"{measure}_interval"] = (
            statistics.of_mean(difference[known], first.patients[known], resamples, seed)
            if known.any()
            else statistics.Interval(np.nan, np.nan)
        )
    difference = first.mean_of_labels("dice") - second.mean_of_labels("dice")
    known = np.isfinite(difference)
    counts = np.bincount(which[known], minlength=len(patients))
    means = (
        np.bincount(which[known], difference[known], len(patients))[counts > 0] / counts[counts > 0]
    )
    moved = means[means != 0]
    row["wilcoxon"] = float(stats.wilcoxon(moved).pvalue) if len(moved) else 1.0
    spread = means.std(ddof=1) / np.sqrt(len(means)) if len(means) > 1 else float("nan")
    row["smallest"] = statistics.smallest(float(spread))
    return row
