"""Error bars and comparisons of classifiers.

Each kind of error bar answers its own question: over test cases (another set of patients), over seeds (another
training run), over folds (another division of the same patients). `several_runs.py` covers patients and seeds at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from MLstatkit import Delong_test
from scipy import special, stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

LEVEL = 0.95
MIN_PATIENTS = 5  # fewer patients do not allow an inference about others
MOST = 1000
POWER = 0.8
RESAMPLES = 400
Weighted = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
# No more numbers than this are held per temporary array.
ENTRIES = 20_000_000
# A variance below this is a rounding error: nothing depends on the patients.
NOTHING = 1e-15
# A smaller difference of two measures is a rounding error.
EQUAL = 1e-12
# The power of the signed-rank test is that of a t test with this share of the cases, if they are normal.
SIGNED_RANKS = 3 / np.pi
MEANING = "95 %, over patients (jackknife and Student's t, of shares on the logit scale; for a threshold: bootstrap)"


class Interval(NamedTuple):
    """A 95 % interval; NaN if it is not defined."""

    low: float
    high: float


def over_patients(
    labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, metric: Weighted, kind: str = "smooth"
) -> Interval:
    """Interval of a measure from 0 to 1, over patients with all their images.

    The variance is a jackknife over patients (Efron 1982), Student's t on the logit of the measure. On test sets of
    tens of patients it contains the truth more often than a BCa bootstrap, which is too narrow there
    (`python -m benchmarks.coverage`). The interval is NaN for fewer than `MIN_PATIENTS` patients, if the measure
    is 0 or 1, and if it is not defined without one of the patients, the only one of a class.

    labels: `(N,)` class numbers.
    probabilities: `(N, C)`.
    patients: `(N,)` names.
    metric: one of `weighted.MEASURES`.
    kind: `weighted.KINDS` of the measure. "decision": it depends on the predicted classes alone. A class whose few
        patients are all right, or all wrong, shows no variance. The variance is therefore at least that with two more
        patients per class, one right and one wrong, in the spirit of Agresti and Coull (1998). "threshold": a
        jackknife does not estimate the variance of a quantile, a bootstrap does.
    """
    value, without, _ = without_each(patients, lambda weights: metric(labels, probabilities, weights))
    if len(without) < MIN_PATIENTS:
        return Interval(float("nan"), float("nan"))
    variance = float(jackknife(without, without))
    if kind == "decision" and variance >= NOTHING:
        variance = max(variance, _with_two_more_per_class(labels, probabilities, patients, metric))
    if kind == "threshold" and variance >= NOTHING:
        variance = _of_resamples(patients, lambda weights: metric(labels, probabilities, weights))
    return student(value, variance, len(without) - 1, share=True)


def _with_two_more_per_class(
    labels: np.ndarray, probabilities: np.ndarray, patients: np.ndarray, metric: Weighted
) -> float:
    present = np.unique(labels)  # a class that the test lacks has no measure, and must not get one here
    wrong = np.roll(present, -1) if len(present) > 1 else (present + 1) % probabilities.shape[1]
    certain = np.eye(probabilities.shape[1])
    labels = np.concatenate([labels, present, present])
    probabilities = np.concatenate([probabilities, certain[present], certain[wrong]])
    which = np.unique(patients, return_inverse=True)[1]
    which = np.concatenate([which, which.max() + 1 + np.arange(2 * len(present))])
    _, without, _ = without_each(which, lambda weights: metric(labels, probabilities, weights))
    return float(jackknife(without, without))


def _of_resamples(patients: np.ndarray, measure: Callable[[np.ndarray], np.ndarray]) -> float:
    names, which = np.unique(patients, return_inverse=True)
    rng = np.random.default_rng(0)
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    size = max(1, ENTRIES // len(which))
    values = [measure(times[i : i + size, which].astype(float)) for i in range(0, RESAMPLES, size)]
    return float(np.nanvar(np.concatenate(values), ddof=1))


def of_mean(values: np.ndarray, patients: np.ndarray, share: bool = False) -> Interval:
    """Interval of the mean of one number per case, over patients, by the same jackknife.

    share: whether the numbers are between 0 and 1, so that the logit is used here too.
    """
    value, without, _ = without_each(patients, lambda weights: weights @ values / weights.sum(axis=1))
    return _over(without, value, share)


def without_each(
    patients: np.ndarray, measure: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, np.ndarray, np.ndarray]:
    """A measure of all cases, without each patient in turn `(P,)`, and the patients' names `(P,)`.

    More than `MOST` patients are left out in `MOST` groups, each named after its first patient.

    patients: `(N,)` names.
    measure: the measure `(B,)` of the cases with weights `(B, N)`.
    """
    names, which = np.unique(patients, return_inverse=True)
    if len(names) > MOST:
        names, which = names[:MOST], which % MOST
    value = float(measure(np.ones((1, len(which))))[0])
    size = max(1, ENTRIES // len(which))
    numbers = np.arange(len(names))
    parts = [
        measure((numbers[i : i + size, None] != which).astype(float)) for i in range(0, len(names), size)
    ]  # fmt: skip
    return value, np.concatenate(parts), names


def jackknife(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Covariance, over patients, of measures from their values without each of P patients.

    a, b: `(..., P)`; the leading axes of the result are those of `a`, then those of `b`.
    """
    P = a.shape[-1]
    a, b = (x - x.mean(axis=-1, keepdims=True) for x in (a, b))
    return (P - 1) / P * np.tensordot(a, b, axes=(-1, -1))


def _over(without: np.ndarray, value: float, share: bool = False) -> Interval:
    if len(without) < MIN_PATIENTS:
        return Interval(float("nan"), float("nan"))
    return student(value, float(jackknife(without, without)), len(without) - 1, share)


def student(value: float, variance: float, degrees: float, share: bool = False) -> Interval:
    """Student's interval of an estimate; NaN if nothing is known about its variance.

    share: whether the value is between 0 and 1. Its logit is then nearer to normal, and the interval stays inside.
    """
    nothing = Interval(float("nan"), float("nan"))
    if not np.isfinite(variance) or variance < NOTHING or np.isnan(degrees) or (share and not 0 < value < 1):
        return nothing
    half = stats.t.ppf((1 + LEVEL) / 2, degrees) * np.sqrt(variance)
    if not share:
        return Interval(float(value - half), float(value + half))
    middle, half = special.logit(value), half / (value * (1 - value))
    return Interval(float(special.expit(middle - half)), float(special.expit(middle + half)))


def corrected_t_test(a: Sequence[float], b: Sequence[float], n_train: float, n_test: float) -> tuple[float, float]:
    """(t, two-sided p) of the corrected resampled t-test over folds (Nadeau and Bengio 2003)."""
    difference = np.asarray(a, float) - np.asarray(b, float)
    k = len(difference)
    spread = difference.var(ddof=1) if k > 1 else 0.0
    if spread < NOTHING:
        equal = np.abs(difference).max() < EQUAL
        return (0.0, 1.0) if equal else (float("nan"), float("nan"))
    t = difference.mean() / np.sqrt((1 / k + n_test / n_train) * spread)
    return float(t), float(2 * stats.t.sf(abs(t), k - 1))


class Comparison(NamedTuple):
    """A paired comparison of two classifiers on the same images.

    smallest: the smallest difference that this test set can detect with 80 % power at the 5 % level; infinite if it
        has too few cases for any p-value below 5 %, NaN if it is not known.
    """

    difference: float
    interval: Interval
    p: float
    smallest: float


def smallest(standard_error: float, degrees: float = np.inf) -> float:
    """The smallest difference that a test detects with 80 % power at the 5 % level.

    degrees: of freedom of the standard error; infinite for a test by the normal distribution.
    """
    return float((stats.t.ppf((1 + LEVEL) / 2, degrees) + stats.t.ppf(POWER, degrees)) * standard_error)


def fewest_of_one_sign() -> int:
    """The fewest cases of which an exact sign or signed-rank test has a p-value below 5 %, if all have one sign."""
    return next(n for n in range(1, 100) if 2 * 0.5**n < 1 - LEVEL)


def signed_rank(differences: np.ndarray) -> tuple[float, float]:
    """(p, smallest detectable mean) of Wilcoxon's signed-rank test. `smallest` is that of a `Comparison`.

    differences: `(N,)`, one per patient.
    """
    n, moved = len(differences), differences[differences != 0]
    if n < MIN_PATIENTS:
        return float("nan"), float("nan")
    p = float(stats.wilcoxon(moved).pvalue) if len(moved) else 1.0
    if n < fewest_of_one_sign():
        return p, float("inf")
    return p, smallest(float(differences.std(ddof=1) / np.sqrt(n * SIGNED_RANKS)), n - 1)


def delong(labels: np.ndarray, a: np.ndarray, b: np.ndarray) -> Comparison:
    """AUROC of `a` minus AUROC of `b`, from scores of the positive class on the same images (DeLong 1988)."""
    unknown = Interval(float("nan"), float("nan"))
    if np.array_equal(a, b):
        return Comparison(0.0, unknown, 1.0, float("nan"))
    # Where the variance is 0, the library resamples; the result of that is not used here.
    _, p, _, _, auc_a, auc_b, info = Delong_test(labels, a, b, n_boot=2, random_state=0)
    difference = float(auc_a - auc_b)
    if info["method"] != "delong":
        # The variance is 0, as where both separate the classes perfectly: equal areas do not differ, and for others
        # the test is not defined.
        p = 1.0 if abs(difference) < 1e-12 else np.nan
        return Comparison(difference, unknown, float(p), float("nan"))
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
    p = float(statsmodels_mcnemar(table, exact=True).pvalue)
    if error == 0:
        return Comparison(difference, Interval(float("nan"), float("nan")), p, float("nan"))
    fewest = fewest_of_one_sign()
    detectable = max(smallest(error), fewest / n) if n >= fewest else float("inf")
    return Comparison(difference, _paired_score(table), p, float(detectable))


def _paired_score(table: np.ndarray) -> Interval:
    """Interval of a difference of paired proportions from their score intervals (Newcombe 1998, method 10).

    Unlike the one of a normal distribution it covers for few discordant pairs too.

    table: of `mcnemar_table`.
    """
    (both, only_a), (only_b, neither) = table.astype(float)
    n = table.sum()
    first, second = (both + only_a) / n, (both + only_b) / n
    low_a, high_a = proportion_confint(both + only_a, n, 1 - LEVEL, "wilson")
    low_b, high_b = proportion_confint(both + only_b, n, 1 - LEVEL, "wilson")
    product = both * neither - only_a * only_b
    product = max(product - n / 2, 0) if product > 0 else product  # corrected for continuity
    sides = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    phi = product / np.sqrt(sides) if sides > 0 else 0.0
    below = (first - low_a) ** 2 - 2 * phi * (first - low_a) * (high_b - second) + (high_b - second) ** 2
    above = (high_a - first) ** 2 - 2 * phi * (high_a - first) * (second - low_b) + (second - low_b) ** 2
    difference = first - second
    return Interval(float(difference - np.sqrt(below)), float(difference + np.sqrt(above)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjustment of p-values for several comparisons; NaN values stay NaN."""
    p = np.asarray(p_values, float)
    finite = np.isfinite(p)
    out = np.full(len(p), np.nan)
    if finite.any():
        out[finite] = multipletests(p[finite], method="holm")[1]
    return out.tolist()


def paired_patients(
    labels: np.ndarray, probabilities: tuple[np.ndarray, np.ndarray], patients: np.ndarray, metric: Weighted
) -> Interval:
    """Interval, over patients, of the difference of a measure between two classifiers (jackknife, Student's t).

    labels: `(N,)` class numbers.
    probabilities: `(N, C)` of each classifier.
    patients: `(N,)` names.
    metric: one of `weighted.MEASURES`.
    """
    first, second = probabilities

    def gain(weights):
        return metric(labels, first, weights) - metric(labels, second, weights)

    value, without, _ = without_each(patients, gain)
    return _over(without, value)
