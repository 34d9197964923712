"""Error bars and comparisons of classifiers.

Three kinds of error bar answer three questions and are never mixed: over test cases (another set of
patients), over seeds (another training run), over folds (another division of the same patients).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from MLstatkit import Delong_test
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

LEVEL = 0.95
MIN_PATIENTS = 5  # fewer patients do not allow an inference about others
POWER = 0.8
Metric = Callable[[np.ndarray, np.ndarray], float]


class Interval(NamedTuple):
    """A 95 % interval; NaN if it is not defined."""

    low: float
    high: float


def over_patients(
    labels: np.ndarray,
    probabilities: np.ndarray,
    patients: np.ndarray,
    metric: Metric,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """BCa bootstrap (Efron 1987) over patients, which resamples whole patients with all their images.

    The measure may be undefined for a resample that lacks a class. Such resamples are dropped, and the
    result is then the percentile interval of the others. The interval is NaN for fewer than `MIN_PATIENTS`
    patients, and if every resample gives the same value.

    labels: `(N,)` class numbers.
    probabilities: `(N, C)`.
    patients: `(N,)` names.
    """
    return _bootstrap(patients, lambda rows: metric(labels[rows], probabilities[rows]), resamples, seed)


def of_mean(values: np.ndarray, patients: np.ndarray, resamples: int = 1000, seed: int = 0) -> Interval:
    """The same interval of the mean of one number per case."""
    return _bootstrap(patients, lambda rows: float(values[rows].mean()), resamples, seed)


def _bootstrap(groups: np.ndarray, measure: Callable[[np.ndarray], float], resamples: int, seed: int) -> Interval:
    patients, which = np.unique(groups, return_inverse=True)
    if len(patients) < MIN_PATIENTS:
        return Interval(np.nan, np.nan)
    order = np.argsort(which, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(which))[:-1])

    def statistic(drawn):
        return measure(np.concatenate([rows[int(i)] for i in drawn]))

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # the warning is about degenerate resamples, which are handled below
        result = stats.bootstrap(
            (np.arange(len(patients)),),
            statistic,
            vectorized=False,
            n_resamples=resamples,
            confidence_level=LEVEL,
            method="BCa",
            rng=np.random.default_rng(seed),
        )
    if np.ptp(result.bootstrap_distribution) < 1e-9:  # all right or all wrong; the true width is not zero
        return Interval(np.nan, np.nan)
    low, high = result.confidence_interval
    if not np.isfinite([low, high]).all():
        finite = result.bootstrap_distribution[np.isfinite(result.bootstrap_distribution)]
        if len(finite) < resamples / 2:
            return Interval(np.nan, np.nan)
        low, high = np.percentile(finite, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return Interval(float(low), float(high))


def over_runs(values: Sequence[float]) -> tuple[float, float, Interval]:
    """Mean, standard deviation and Student interval of the mean, over seeds (independent runs)."""
    x = np.asarray(values, float)
    if len(x) < 2:
        return float(x.mean()), float("nan"), Interval(np.nan, np.nan)
    sd = float(x.std(ddof=1))
    half = stats.t.ppf((1 + LEVEL) / 2, len(x) - 1) * sd / np.sqrt(len(x))
    return float(x.mean()), sd, Interval(float(x.mean() - half), float(x.mean() + half))


def over_folds(values: Sequence[float], n_train: float, n_test: float) -> tuple[float, float, Interval]:
    """The same over the folds of a cross-validation, whose training sets overlap.

    The variance follows Nadeau and Bengio (2003): (1 / k + n_test / n_train) s^2, with the numbers of
    training and test images of a fold.
    """
    x = np.asarray(values, float)
    if len(x) < 2:
        return float(x.mean()), float("nan"), Interval(np.nan, np.nan)
    ratio = n_test / n_train
    sd = float(x.std(ddof=1))
    half = stats.t.ppf((1 + LEVEL) / 2, len(x) - 1) * sd * np.sqrt(1 / len(x) + ratio)
    return float(x.mean()), sd, Interval(float(x.mean() - half), float(x.mean() + half))


def corrected_t_test(a: Sequence[float], b: Sequence[float], n_train: float, n_test: float) -> tuple[float, float]:
    """(t, two-sided p) of the corrected resampled t-test over folds (Nadeau and Bengio 2003)."""
    difference = np.asarray(a, float) - np.asarray(b, float)
    k = len(difference)
    spread = difference.var(ddof=1)
    if k < 2 or spread == 0:
        return (0.0, 1.0) if not difference.any() else (float("nan"), float("nan"))
    t = difference.mean() / np.sqrt((1 / k + n_test / n_train) * spread)
    return float(t), float(2 * stats.t.sf(abs(t), k - 1))


class Comparison(NamedTuple):
    """A paired comparison of two classifiers on the same images.

    smallest: the smallest difference that this test set can detect with 80 % power at the 5 % level.
    """

    difference: float
    interval: Interval
    p: float
    smallest: float


def smallest(standard_error: float) -> float:
    """The smallest difference that is detected with 80 % power at the 5 % level."""
    return float((stats.norm.ppf((1 + LEVEL) / 2) + stats.norm.ppf(POWER)) * standard_error)


def delong(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> Comparison:
    """AUROC of `a` minus AUROC of `b`, from scores of the positive class on the same images (DeLong 1988)."""
    if np.array_equal(a, b):
        return Comparison(0.0, Interval(0.0, 0.0), 1.0, float("nan"))
    _, p, _, _, auc_a, auc_b, info = Delong_test(labels, a, b, random_state=0)
    difference = float(auc_a - auc_b)
    if info["method"] != "delong":
        return Comparison(difference, Interval(np.nan, np.nan), float(p), float("nan"))
    error = float(np.sqrt(info["var_diff"]))
    half = stats.norm.ppf((1 + LEVEL) / 2) * error
    interval = Interval(difference - half, difference + half)
    return Comparison(difference, interval, float(p), smallest(error))


def mcnemar_table(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """`[[both right, only a right], [only b right, both wrong]]` of predicted classes."""
    right_a, right_b = a == labels, b == labels
    return np.array(
        [
            [(right_a & right_b).sum(), (right_a & ~right_b).sum()],
            [(~right_a & right_b).sum(), (~right_a & ~right_b).sum()],
        ]
    )


def mcnemar(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> Comparison:
    """Accuracy of `a` minus accuracy of `b`, from predicted classes on the same images (exact McNemar test)."""
    table = mcnemar_table(labels, a, b)
    n, only_a, only_b = table.sum(), table[0, 1], table[1, 0]
    difference = float((only_a - only_b) / n)
    error = float(np.sqrt(max(only_a + only_b - (only_a - only_b) ** 2 / n, 0)) / n)
    half = stats.norm.ppf((1 + LEVEL) / 2) * error
    p = float(statsmodels_mcnemar(table, exact=True).pvalue)
    interval = Interval(difference - half, difference + half)
    return Comparison(difference, interval, p, smallest(error) if error else float("nan"))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment of p-values for several comparisons; NaN values stay NaN."""
    p = np.asarray(p_values, float)
    finite = np.isfinite(p)
    out = np.full(len(p), np.nan)
    if finite.any():
        out[finite] = multipletests(p[finite], method="holm")[1]
    return out.tolist()


def paired_patients(
    labels: np.ndarray,
    probabilities: tuple[np.ndarray, np.ndarray],
    patients: np.ndarray,
    metric: Metric,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Bootstrap interval, over patients, of the difference of a measure between two classifiers.

    labels: `(N,)` class numbers.
    probabilities: `(N, C)` of each classifier.
    patients: `(N,)` names.
    """
    first, second = probabilities
    patients, which = np.unique(patients, return_inverse=True)
    order = np.argsort(which, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(which))[:-1])
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(resamples):
        drawn = generator.integers(0, len(patients), len(patients))
        chosen = np.concatenate([rows[i] for i in drawn])
        truth = labels[chosen]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values.append(metric(truth, first[chosen]) - metric(truth, second[chosen]))
    finite: Any = np.array(values)[np.isfinite(values)]
    if len(finite) < resamples / 2:
        return Interval(np.nan, np.nan)
    low, high = np.percentile(finite, [100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2])
    return Interval(float(low), float(high))
