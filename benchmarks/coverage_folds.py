"""Simulated cross-validation for `benchmarks.coverage`: linear classifiers trained on all folds but one.

The training sets of folds overlap, so the networks of a cross-validation are not independent. Here a regularised
linear discriminant is trained for real, in each fold and for each of three seeds, on a bootstrap sample of its training
patients. The features of the two compared methods are equally informative. There are two truths, both on new patients:
of more trainings on the same training sets, and averaged over 400 other training sets of their size.
"""

import dataclasses
import functools

import numpy as np

from benchmarks.coverage_classes import contains, drawn, not_rejected, two_levels
from deblur_mae_jax.metrics import several_runs, statistics, weighted
from deblur_mae_jax.metrics.several_runs import Judged

MEASURES = ("accuracy", "f1_macro", "auroc")
SETS, NEW = 400, 2000
SEEDS, MORE = 3, 15


@dataclasses.dataclass
class Situation:
    """A set that is divided into folds by patients.

    apart: distance of the two classes over all features, in standard deviations within a class.
    features: how many features a method has.
    """

    patients: int
    images: int
    folds: int
    positive: float = 0.33
    apart: float = 1.6
    features: int = 20


SITUATIONS = {
    "5 folds of 120 patients": Situation(120, 240, 5),
    "4 folds like BUS-BRA": Situation(852, 1492, 4),
}


def drawn_set(rng, s, patients):
    """Labels `(N,)`, patients `(N,)` and the features `(N, features)` of two methods, which share most noise."""
    of = drawn(rng, patients, s.images / s.patients)
    labels = (rng.random(patients) < s.positive).astype(int)[of]
    common = two_levels(rng, of, s.features, 0.5)
    step = s.apart / np.sqrt(s.features) * labels[:, None]
    methods = [step + np.sqrt(0.7) * common + np.sqrt(0.3) * two_levels(rng, of, s.features, 0.5) for _ in range(2)]
    return labels, of, methods


def fitted(rng, x, labels, of):
    """Weights and threshold of a linear discriminant on a bootstrap sample of the patients."""
    times = np.bincount(rng.choice(of[-1] + 1, of[-1] + 1), minlength=of[-1] + 1)[of]
    means = np.stack([np.average(x, axis=0, weights=times * (labels == c) + 1e-9) for c in (0, 1)])
    within = x - means[labels]
    covariance = (within * times[:, None]).T @ within / times.sum()
    w = np.linalg.solve(covariance + 0.1 * np.eye(x.shape[1]), means[1] - means[0])
    return w, means.mean(axis=0) @ w


def scores(x, w, threshold):
    """`(N, 2)`, as of a network with two classes."""
    z = x @ w - threshold
    return np.stack([-z, z], axis=1)


def truths(s, rng):
    """`average`: every measure on new patients, averaged over training sets."""
    found = {m: [] for m in MEASURES}
    for _ in range(SETS):
        labels, of, (x, _) = drawn_set(rng, s, s.patients * (s.folds - 1) // s.folds)
        new, _, (y, _) = drawn_set(rng, s, NEW)
        p = scores(y, *fitted(rng, x, labels, of))
        for m in MEASURES:
            found[m].append(float(weighted.MEASURES[m](new, p, np.ones((1, len(new))))[0]))
    return {"average": {m: float(np.mean(v)) for m, v in found.items()}}


def trial(s, rng, truth):
    """Yield (what is printed, measure, whether it contains the truth, width)."""
    labels, of, methods = drawn_set(rng, s, s.patients)
    fold_of = (rng.permutation(s.patients) % s.folds)[of]
    names = np.array([f"p{i:04d}" for i in of])
    tests = [np.flatnonzero(fold_of == k) for k in range(s.folds)]
    new = drawn_set(rng, s, NEW)
    judged, same = [], []  # of every method: (seed, cases, scores), and its truth on the same training sets
    for x, other in zip(methods, new[2], strict=True):
        networks = []
        for test in tests:
            train = np.setdiff1d(np.arange(len(labels)), test)
            patients = np.unique(of[train], return_inverse=True)[1]
            networks += [(seed, test, fitted(rng, x[train], labels[train], patients)) for seed in range(SEEDS + MORE)]
        judged.append([(seed, test, scores(x[test], *w)) for seed, test, w in networks if seed < SEEDS])
        same.append([scores(other, *w) for _, _, w in networks])
    one = np.ones((1, len(new[0])))
    for measure in MEASURES:
        function = weighted.MEASURES[measure]
        on_same = [float(np.mean([function(new[0], p, one)[0] for p in own])) for own in same]
        tables = [
            several_runs.table(
                [Judged(seed, names[test], functools.partial(function, labels[test], p)) for seed, test, p in own]
            )
            for own in judged
        ]
        mean, difference = several_runs.mean(tables[0]).interval, several_runs.difference(*tables).interval
        yield "folds x 3 trainings, mean, same training sets", measure, *contains(mean, on_same[0])
        yield (
            "folds x 3 trainings, difference, same training sets",
            measure,
            *contains(difference, on_same[0] - on_same[1]),
        )
        yield "folds x 3 trainings, mean, other training sets", measure, *contains(mean, truth["average"][measure])
        yield "folds x 3 trainings, difference, other training sets", measure, *contains(difference, 0.0)
        by_fold = [
            [float(function(labels[t], p, np.ones((1, len(t))))[0]) for seed, t, p in own if seed == 0]
            for own in judged
        ]
        n_test = len(labels) / s.folds
        _, p = statistics.corrected_t_test(*by_fold, len(labels) - n_test, n_test)
        yield "folds, corrected t-test, other training sets", measure, *not_rejected(p)
