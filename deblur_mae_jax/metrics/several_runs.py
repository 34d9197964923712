"""The mean of several trained networks on the same test patients, and the difference between two methods.

A method is trained several times, and every network is judged on the same patients. Another set of patients and
another training would both change the mean, so its interval has to cover both. This is the design of a reader study
with several readers and cases, with trained networks in place of readers: Obuchowski and Rockette (1995), with the
degrees of freedom of Hillis (2007) and readers nested in methods. Methods that start from the same pre-trainings share
them; they are compared within each. The covariances over patients are jackknife estimates, which leave out one patient
at a time.

Where every pre-training has fine-tunings with the same seeds, a seed that is a lucky one for all of them is a
variance of its own (a two-way analysis of variance of pre-trainings and seeds). It is a part of the variance of a
mean. It cancels in the difference of two methods that use the same seeds if it is the same for both, which may make
that interval too wide; where it differs between them, the interval is too narrow.

In a cross-validation every test patient is a training patient of the other folds, so the networks' errors depend on
one another and the jackknife is too small (Bates, Hastie and Tibshirani 2024). With k folds it is multiplied by
1 + 1 / (k - 1), one plus the ratio of test to training patients, which Nadeau and Bengio (2003) add to 1 / k. In
simulations the intervals then cover (`python -m benchmarks.coverage`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from deblur_mae_jax.metrics import statistics
from deblur_mae_jax.metrics.statistics import LEVEL, MIN_PATIENTS, POWER, Interval


class Judged(NamedTuple):
    """One network on its test cases.

    training: the training that another one would replace: the seed of the pre-training where several are
        compared, else that of the fine-tuning. Networks of one training are averaged.
    patients: patient of every case, `(N,)`.
    measure: the measure `(B,)` of the cases with weights `(B, N)`; NaN where it is not defined.
    counted: whether a case has a value of this measure, `(N,)`; `None` if all have.
    images: name of every case, `(N,)`; `None` if every patient has one.
    seed: what networks of different trainings may have in common: the seed of the fine-tuning.
    """

    training: Hashable
    patients: np.ndarray
    measure: Callable[[np.ndarray], np.ndarray]
    counted: np.ndarray | None = None
    images: np.ndarray | None = None
    seed: Hashable = None

    @property
    def cases(self) -> frozenset[str]:
        """Names of all cases."""
        return frozenset(str(name) for name in (self.patients if self.images is None else self.images))


class Mean(NamedTuple):
    """Mean of a method over trainings.

    interval: 95 %, over patients and trainings; over patients alone if there is one training.
    sd: standard deviation between trainings; NaN for one.
    """

    value: float
    interval: Interval
    sd: float
    trainings: int
    patients: int


class Difference(NamedTuple):
    """Mean of one method minus that of another.

    smallest: the smallest difference that is detected with 80 % power at the 5 % level.
    """

    value: float
    interval: Interval
    p: float
    smallest: float


@dataclasses.dataclass
class _Table:
    """Values of a method: of every training `(R,)`, and of every training without one patient `(R, P)`.

    counted: whether any network has a value of this patient, `(P,)`. The others do not count as patients.
    overlap: what the variance over patients is multiplied by, 1 without folds.
    people: number of patients, also where groups of them are left out together.
    trainings: what the rows of `values` are, `(R,)`.
    cases: names of the test cases.
    fixed: whether the method is not trained anew, so that its trainings add no variance.
    of_seeds: variance of the mean over seeds that all trainings share, and its degrees of freedom.
    """

    values: np.ndarray
    without: np.ndarray
    patients: list[str]
    counted: np.ndarray
    overlap: float
    people: int
    trainings: list[Hashable]
    cases: frozenset[str]
    fixed: bool = False
    of_seeds: tuple[float, int] = (0.0, 1)

    @property
    def mean(self) -> float:
        return float(self.values.mean())

    @property
    def mean_square(self) -> float:
        """Variance between trainings; 0 if there is one."""
        return float(self.values.var(ddof=1)) if len(self.values) > 1 else 0.0


def table(networks: Sequence[Judged], fixed: bool = False) -> _Table:
    """Judge every network on all of its cases, and without the cases of each patient.

    Each fold of a training counts the same, however many networks it has.

    fixed: as in `_Table`; for a classifier without random numbers, or for an ensemble as it is.
    Raises `ValueError` if the trainings were not judged on the same images of the same patients, or folds share
    patients.
    """
    trainings = list(dict.fromkeys(n.training for n in networks))
    seen = [{str(p) for n in networks if n.training == t for p in n.patients} for t in trainings]
    if any(own != seen[0] for own in seen):
        raise ValueError(f"the trainings were judged on different patients ({', '.join(str(len(s)) for s in seen)})")
    cases = [frozenset().union(*(n.cases for n in networks if n.training == t)) for t in trainings]
    if any(own != cases[0] for own in cases):
        counts = ", ".join(str(len(own)) for own in cases)
        raise ValueError(f"the trainings were judged on different images of the same patients ({counts})")
    patients = sorted(seen[0])
    sets = {frozenset(str(p) for p in n.patients) for n in networks}  # one for each fold
    if sum(len(s) for s in sets) > len(patients):
        sizes = ", ".join(str(len(s)) for s in sorted(sets, key=len))
        raise ValueError(f"the networks of a training were judged on different patients that overlap ({sizes})")
    folds, people = len(sets), len(patients)
    fold_of = [n.cases for n in networks]
    if len(patients) > statistics.MOST:  # leave out groups, the same ones for every network
        group = {patient: patients[i % statistics.MOST] for i, patient in enumerate(patients)}
        networks = [n._replace(patients=np.array([group[str(p)] for p in n.patients])) for n in networks]
        patients = patients[: statistics.MOST]
    where = {patient: i for i, patient in enumerate(patients)}
    judged: list[dict[frozenset[str], list[tuple[Hashable, float, np.ndarray]]]] = [{} for _ in trainings]
    counted = np.zeros(len(patients), bool)
    for network, fold in zip(networks, fold_of, strict=True):
        value, left_out, own = statistics.without_each(network.patients, network.measure)
        left = np.full(len(patients), value)  # patients of other folds do not change this network's measure
        left[[where[str(patient)] for patient in own]] = left_out
        has = network.patients if network.counted is None else network.patients[network.counted]
        counted[[where[str(patient)] for patient in np.unique(has)]] = True
        of_folds = judged[trainings.index(network.training)]
        of_folds.setdefault(fold, []).append((network.seed, value, left))
    means = np.array([np.mean([np.mean([v for _, v, _ in fold]) for fold in own.values()]) for own in judged])
    overlap = 1 + 1 / (folds - 1) if folds > 1 else 1.0
    left_out = np.array(
        [np.mean([np.mean([w for *_, w in fold], axis=0) for fold in own.values()], axis=0) for own in judged]
    )
    of_seeds = _of_seeds([[{seed: v for seed, v, _ in fold} for fold in own.values()] for own in judged])
    return _Table(means, left_out, patients, counted, overlap, people, trainings, cases[0], fixed, of_seeds)


def _of_seeds(values: list[list[dict[Hashable, float]]]) -> tuple[float, int]:
    """Variance of the mean over seeds that are common to all trainings and folds, and its degrees of freedom.

    It is (mean square of the seeds - mean square of the residual) / (trainings x seeds), at least 0; 0 where the
    trainings have other seeds, or one alone.
    values: by seed, of every fold of every training.
    """
    seeds = list(values[0][0])
    R, S = len(values), len(seeds)
    if R < 2 or S < 2 or any(set(fold) != set(seeds) for own in values for fold in own):
        return 0.0, 1
    x = np.array([[np.mean([fold[seed] for fold in own]) for seed in seeds] for own in values])
    of_seeds = R * x.mean(axis=0).var(ddof=1)
    residual = x - x.mean(axis=0) - x.mean(axis=1, keepdims=True) + x.mean()
    left = (residual**2).sum() / ((R - 1) * (S - 1))
    return float(max(of_seeds - left, 0.0)) / (R * S), S - 1


def _between(covariance: np.ndarray) -> float:
    """Covariance of different trainings on the same patients; the variance itself if there is one training."""
    R = len(covariance)
    return float(covariance[0, 0] if R == 1 else covariance[~np.eye(R, dtype=bool)].mean())


def _degrees(parts: Sequence[tuple[float, int]]) -> float:
    """Satterthwaite's degrees of freedom of a sum of variances, each with its own; a variance of 0 has none."""
    total = sum(v for v, _ in parts)
    return total**2 / sum(v**2 / d for v, d in parts if v > 0) if total > 0 else float("nan")


def _of_trainings(a: _Table, b: _Table) -> list[tuple[float, int]]:
    """Variance of the difference between two methods over trainings, in parts with their degrees of freedom.

    One estimate that serves both methods is one part: as two, it would count as two independent ones.
    """
    several = [t for t in (a, b) if len(t.values) > 1]
    if len(several) == 1:
        known = several[0]
        share = sum(1 / len(t.values) for t in (a, b) if not t.fixed)
        return [(known.mean_square * share, len(known.values) - 1)]
    return [(t.mean_square / len(t.values), len(t.values) - 1) for t in several]


def mean(networks: Sequence[Judged] | _Table, share: bool = True) -> Mean:
    """Mean over trainings with its interval, which is NaN for fewer than `MIN_PATIENTS` patients.

    share: whether the measure is between 0 and 1.
    """
    t = networks if isinstance(networks, _Table) else table(networks)
    R, P = len(t.values), int(t.counted.sum())
    sd = float(t.values.std(ddof=1)) if R > 1 else float("nan")
    interval = Interval(float("nan"), float("nan"))
    if P >= MIN_PATIENTS:
        without = t.without[:, t.counted]
        of_patients = t.overlap * max(_between(statistics.jackknife(without, without)), 0.0)
        parts = [(t.mean_square / R, R - 1), t.of_seeds, (of_patients, P - 1)]
        interval = statistics.student(t.mean, sum(v for v, _ in parts), _degrees(parts), share)
    return Mean(t.mean, interval, sd, R, t.people)


def _paired(a: _Table, b: _Table) -> _Table:
    """The difference of every training, for methods that share their trainings."""
    order = [b.trainings.index(training) for training in a.trainings]
    return dataclasses.replace(
        a, values=a.values - b.values[order], without=a.without - b.without[order], overlap=max(a.overlap, b.overlap)
    )


def difference(first: Sequence[Judged] | _Table, second: Sequence[Judged] | _Table, shared: bool = False) -> Difference:
    """First minus second, judged on the same images. Raises `ValueError` if patients or images differ.

    If one method was trained once, the trainings of the other say how much trainings differ, except for a method that
    is not trained anew. If both were, the interval is over patients alone.
    shared: whether training 1 of one method is that of the other, such as a pre-training that both start from. The
        difference is then taken within each training.
    """
    a, b = (m if isinstance(m, _Table) else table(m) for m in (first, second))
    if a.patients != b.patients:
        raise ValueError(f"the methods were judged on different patients ({len(a.patients)} and {len(b.patients)})")
    if a.cases != b.cases:
        raise ValueError(
            f"the methods were judged on different images of the same patients ({len(a.cases)} and {len(b.cases)})"
        )
    counted = a.counted | b.counted
    P = int(counted.sum())
    value = a.mean - b.mean
    unknown = Difference(value, Interval(float("nan"), float("nan")), float("nan"), float("nan"))
    if P < MIN_PATIENTS:
        return unknown
    if shared and len(a.trainings) > 1 and set(a.trainings) == set(b.trainings):
        both = _paired(a, b)
        left_out, trainings = both.without[:, counted], [(both.mean_square / len(both.values), len(both.values) - 1)]
        common = _between(statistics.jackknife(left_out, left_out))
    else:
        of_a, of_b, trainings = a.without[:, counted], b.without[:, counted], _of_trainings(a, b)
        common = _between(statistics.jackknife(of_a, of_a)) + _between(statistics.jackknife(of_b, of_b))
        common -= 2 * float(statistics.jackknife(of_a, of_b).mean())
    parts = [(max(common, 0.0) * max(a.overlap, b.overlap), P - 1), *trainings]
    variance, degrees = sum(v for v, _ in parts), _degrees(parts)
    interval = statistics.student(value, variance, degrees)
    if np.isnan(interval.low):
        return unknown
    error = np.sqrt(variance)
    smallest = (stats.t.ppf((1 + LEVEL) / 2, degrees) + stats.t.ppf(POWER, degrees)) * error
    return Difference(value, interval, float(2 * stats.t.sf(abs(value) / error, degrees)), float(smallest))
