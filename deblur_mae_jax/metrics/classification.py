"""Measures of a classifier, computed with scikit-learn and SciPy. Labels `(N,)`, probabilities `(N, C)`.

If a set lacks a class, averages over classes use only the classes present in the labels. A measure that
is then undefined is NaN.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import optimize, special, stats
from sklearn import metrics

SPECIFICITY = 0.9
BINS = 10
MEANING = {
    "accuracy": "accuracy (= micro F1)",
    "balanced_accuracy": "balanced accuracy (mean recall)",
    "f1_binary": "F1 of the positive class",
    "f1_macro": "F1, macro",
    "f1_weighted": "F1, weighted",
    "auroc": "AUROC (one against the rest, macro, for several classes)",
    "average_precision": "average precision",
    "sensitivity_at_specificity": f"sensitivity at specificity {SPECIFICITY:g} (threshold chosen on these images)",
    "ece": f"expected calibration error, {BINS} bins",
    "brier": "Brier score (sum over classes)",
    "log_loss": "cross-entropy",
}
HIGHER_IS_BETTER = {name: name not in ("ece", "brier", "log_loss") for name in MEANING}


def _present(labels: np.ndarray) -> np.ndarray:
    return np.unique(labels)


def accuracy(labels: np.ndarray, p: np.ndarray) -> float:
    """Share of images whose most probable class is the true one."""
    return float(metrics.accuracy_score(labels, p.argmax(1)))


def balanced_accuracy(labels: np.ndarray, p: np.ndarray) -> float:
    """Mean recall over the classes present."""
    present = list(_present(labels))
    return float(metrics.recall_score(labels, p.argmax(1), labels=present, average="macro", zero_division=0))


def _f1(labels: np.ndarray, p: np.ndarray, average: str) -> float:
    present = list(_present(labels))
    return float(metrics.f1_score(labels, p.argmax(1), labels=present, average=average, zero_division=0))


def f1_macro(labels: np.ndarray, p: np.ndarray) -> float:
    """Mean F1 over the classes present."""
    return _f1(labels, p, "macro")


def f1_weighted(labels: np.ndarray, p: np.ndarray) -> float:
    """Mean F1 over the classes, weighted by their share."""
    return _f1(labels, p, "weighted")


def f1_binary(labels: np.ndarray, p: np.ndarray) -> float:
    """F1 of the last of two classes; NaN for more classes, and if no image has the last one or is taken for it."""
    if p.shape[1] != 2:
        return float("nan")
    return float(metrics.f1_score(labels, p.argmax(1), pos_label=1, zero_division=np.nan))


def _one_against_rest(labels: np.ndarray, p: np.ndarray, score: Callable[[np.ndarray, np.ndarray], float]) -> float:
    """`score(is the class, probability)` of the last of two classes, or its mean over the classes present."""
    present = _present(labels)
    if len(present) < 2:
        return float("nan")
    if p.shape[1] == 2:
        return float(score(labels == 1, p[:, 1]))
    return float(np.mean([score(labels == c, p[:, c]) for c in present]))


def auroc(labels: np.ndarray, p: np.ndarray) -> float:
    """Area under the ROC curve; ties count one half."""
    return _one_against_rest(labels, p, metrics.roc_auc_score)


def average_precision(labels: np.ndarray, p: np.ndarray) -> float:
    """Area under the precision-recall step curve."""
    return _one_against_rest(labels, p, metrics.average_precision_score)


def sensitivity_at_specificity(labels: np.ndarray, p: np.ndarray) -> float:
    """The largest sensitivity at any threshold with a specificity of at least `SPECIFICITY`."""

    def score(truth, values):
        false_positives, sensitivity, _ = metrics.roc_curve(truth, values, drop_intermediate=False)
        return sensitivity[false_positives <= 1 - SPECIFICITY + 1e-12].max()

    return _one_against_rest(labels, p, score)


def ece(labels: np.ndarray, p: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of the predicted class, bins of equal width (low, high]."""
    return calibration_error(p.argmax(1) == labels, p.max(1), bins)


def calibration_error(right: np.ndarray, confidence: np.ndarray, bins: int = BINS) -> float:
    """Mean over bins of |accuracy - mean confidence|, weighted by the number of images in each bin."""
    which = np.ceil(np.asarray(confidence) * bins)
    edges = np.arange(bins + 1) + 0.5

    def summed(values):
        return stats.binned_statistic(np.clip(which, 1, bins), values, "sum", edges).statistic

    gap = np.abs(summed(np.asarray(right, float)) - summed(confidence))
    return float(gap.sum() / len(which))


def brier(labels: np.ndarray, p: np.ndarray) -> float:
    """Mean of the squared error summed over the classes (two classes: twice the usual one)."""
    return float(metrics.brier_score_loss(labels, p, labels=range(p.shape[1]), scale_by_half=False))


def log_loss(labels: np.ndarray, p: np.ndarray) -> float:
    """Mean cross-entropy."""
    return float(metrics.log_loss(labels, p, labels=range(p.shape[1])))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    f.__name__: f
    for f in (
        accuracy, balanced_accuracy, f1_binary, f1_macro, f1_weighted, auroc, average_precision,
        sensitivity_at_specificity, ece, brier, log_loss,
    )
}  # fmt: skip


def measure(labels: np.ndarray, p: np.ndarray) -> dict[str, float]:
    """Every measure; `f1_binary` only for two classes."""
    names = [n for n in METRICS if n != "f1_binary" or p.shape[1] == 2]
    return {name: METRICS[name](labels, p) for name in names}


def fit_temperature(labels: np.ndarray, p: np.ndarray) -> float | None:
    """The temperature that minimises the cross-entropy (Guo et al. 2017); fit it on validation images.

    Returns `None` if no minimum exists between 0.05 and 20, for example if all probabilities are 0 or 1.
    """
    logits = np.log(np.maximum(p, 1e-300))

    def loss(log_t):
        return -special.log_softmax(logits / np.exp(log_t), axis=1)[np.arange(len(labels)), labels].mean()

    low, high = np.log(0.05), np.log(20.0)
    optimum = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded")
    ends = loss(low), loss(high)
    flat = max(ends) - optimum.fun < 1e-9
    if flat or min(optimum.x - low, high - optimum.x) < 1e-2:
        return None
    return float(np.exp(optimum.x))


def scale(p: np.ndarray, temperature: float) -> np.ndarray:
    """Rescale probabilities to another temperature."""
    return special.softmax(np.log(np.maximum(p, 1e-300)) / temperature, axis=1)
