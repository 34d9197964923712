"""Measures of a classifier with a weight per image, for many sets of weights at once.

A jackknife over patients changes how often an image counts, not its prediction. One sort of the scores
therefore serves all of its samples. Every function takes labels `(N,)`, probabilities `(N, C)` and weights `(B, N)` and
returns `(B,)`; with the weights of a row all 1, it is the measure of the same name in `classification`.
"""

from __future__ import annotations

import numpy as np

from deblur_mae_jax.metrics.classification import SPECIFICITY
from deblur_mae_jax.metrics.statistics import Weighted


def _per_class(labels: np.ndarray, p: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Weight of the images of a class, of those predicted as it, and of those that are both, `(B, C)` each."""
    C = p.shape[1]
    truth, predicted = np.eye(C)[labels], np.eye(C)[p.argmax(1)]
    return weights @ truth, weights @ predicted, weights @ (truth * predicted)


def _ratio(above: np.ndarray, below: np.ndarray, otherwise: float) -> np.ndarray:
    """`above / below`, and another value where `below` is 0."""
    return np.where(below > 0, above / np.where(below > 0, below, 1), otherwise)


def _mean_of_present(values: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Mean over the classes that a resample has."""
    return _ratio(np.where(present, values, 0).sum(axis=1), present.sum(axis=1), np.nan)


def accuracy(labels: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of images whose most probable class is the true one."""
    return _ratio(weights @ (p.argmax(1) == labels), weights.sum(axis=1), np.nan)


def balanced_accuracy(labels: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean recall over the classes present."""
    true, _, both = _per_class(labels, p, weights)
    return _mean_of_present(_ratio(both, true, 0), true > 0)


def f1_macro(labels: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes present."""
    true, predicted, both = _per_class(labels, p, weights)
    return _mean_of_present(_ratio(2 * both, true + predicted, 0), true > 0)


def f1_binary(labels: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """F1 of the last of two classes; NaN for more classes, and if no image has the last one or is taken for it."""
    if p.shape[1] != 2:
        return np.full(len(weights), np.nan)
    true, predicted, both = _per_class(labels, p, weights)
    return _ratio(2 * both, true + predicted, np.nan)[:, 1]


def _curve(is_class: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of the positive and the negative images of every distinct score, from the highest, `(B, S)` each."""
    order = np.argsort(-scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) != 0])
    sorted_weights = weights[:, order]
    positive = sorted_weights * is_class[order]
    return tuple(np.add.reduceat(w, starts, axis=1) for w in (positive, sorted_weights - positive))  # type: ignore[return-value]


def _one_against_rest(labels, p, weights, score) -> np.ndarray:
    """`score(positive, negative weights)` of the last of two classes, or its mean over the classes present."""
    C = p.shape[1]
    present = weights @ np.eye(C)[labels] > 0
    several = present.sum(axis=1) > 1
    if C == 2:
        values = score(*_curve(labels == 1, p[:, 1], weights))
    else:
        of_class = [score(*_curve(labels == c, p[:, c], weights)) for c in range(C)]
        values = _mean_of_present(np.stack(of_class, axis=1), present)
    return np.where(several, values, np.nan)


def _area(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    beaten = negative.sum(axis=1, keepdims=True) - negative.cumsum(axis=1) + negative / 2
    return _ratio((positive * beaten).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1), np.nan)


def _precision(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    found = positive.cumsum(axis=1)
    precision = _ratio(found, found + negative.cumsum(axis=1), 0)
    return _ratio((positive * precision).sum(axis=1), positive.sum(axis=1), np.nan)


def _sensitivity(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    total = negative.sum(axis=1, keepdims=True)
    allowed = negative.cumsum(axis=1) <= (1 - SPECIFICITY + 1e-12) * total
    best = np.where(allowed, positive.cumsum(axis=1), 0).max(axis=1)
    return _ratio(best, positive.sum(axis=1), np.nan)


def auroc(labels: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve; ties count one half."""
    return _one_against_rest(labels, p, weights, _area)


def average_precision(labels: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the precision-recall step curve."""
    return _one_against_rest(labels, p, weights, _precision)


def sensitivity_at_specificity(labels: np.ndarray, p: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The largest sensitivity at any threshold with a specificity of at least `SPECIFICITY`."""
    return _one_against_rest(labels, p, weights, _sensitivity)


MEASURES: dict[str, Weighted] = {
    f.__name__: f
    for f in (
        accuracy, balanced_accuracy, f1_binary, f1_macro, auroc, average_precision, sensitivity_at_specificity,
    )
}  # fmt: skip
# What a measure depends on: see `statistics.over_patients`.
KINDS = dict.fromkeys(MEASURES, "smooth")
KINDS |= dict.fromkeys(("accuracy", "balanced_accuracy", "f1_binary", "f1_macro"), "decision")
KINDS["sensitivity_at_specificity"] = "threshold"
