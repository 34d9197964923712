"""Simulated classifiers for `benchmarks.coverage`, on test sets of the sizes of the public ones of docs/results.md.

Images of a patient resemble each other, all networks find the same images hard, two networks disagree on patients as
well as on images, and trainings differ. The truth is the measure on 200,000 patients, averaged over trainings where
the interval covers those.
"""

import dataclasses
import functools

import numpy as np

from deblur_mae_jax.metrics import several_runs, statistics, weighted
from deblur_mae_jax.metrics.several_runs import Judged

MEASURES = tuple(weighted.MEASURES)
NOT_IN_STUDIES = ("balanced_accuracy", "average_precision", "sensitivity_at_specificity")
MANY = 200_000


@dataclasses.dataclass
class Situation:
    """A test set and how good a classifier is on it.

    shares: share of every class.
    apart: how far apart the classes are; the variances within a class add up to 1.
    between: standard deviation of `apart` between trainings.
    of_seeds: the same between the seeds of the fine-tuning, each of which all pre-trainings share.
    """

    patients: int
    images: int
    shares: tuple[float, ...]
    apart: float
    between: float = 0.15
    of_seeds: float = 0.0


SITUATIONS = {
    "BUS-BRA": Situation(214, 365, (0.67, 0.33), 1.3),
    "MMOTU": Situation(77, 153, (0.2, 0.18, 0.17, 0.15, 0.1, 0.08, 0.07, 0.05), 1.3),
    "DDTI": Situation(29, 45, (0.84, 0.16), 1.0),
    "phantoms": Situation(40, 120, (0.5, 0.5), 3.0),
    "BUS-BRA with shared seeds": Situation(214, 365, (0.67, 0.33), 1.3, of_seeds=0.1),
}


def drawn(rng, patients, per_patient):
    """Number of its patient for every image `(N,)`."""
    counts = np.full(patients, int(per_patient))
    counts[: round(patients * (per_patient - int(per_patient)))] += 1
    return np.repeat(np.arange(patients), rng.permutation(counts))


def test_set(rng, s, patients=None):
    """Labels `(N,)`, patients `(N,)` and what makes an image hard for every network `(N, C)`."""
    P = patients or s.patients
    of = drawn(rng, P, s.images / s.patients)
    labels = rng.choice(len(s.shares), P, p=np.array(s.shares) / sum(s.shares))[of]
    return labels, of, np.sqrt(0.7) * two_levels(rng, of, len(s.shares), 4 / 7)


def two_levels(rng, of, columns, share):
    """Standard normal `(N, columns)`, of which a share of the variance is common to the images of a patient."""
    patients = rng.normal(size=(of[-1] + 1, columns))[of]
    return np.sqrt(share) * patients + np.sqrt(1 - share) * rng.normal(size=(len(of), columns))


def trained(rng, s, labels, of, hard, apart):
    """Scores `(N, C)` of one network; two classes share one score."""
    scores = apart * np.eye(len(s.shares))[labels] + hard + np.sqrt(0.3) * two_levels(rng, of, len(s.shares), 0.5)
    if len(s.shares) == 2:
        scores = scores[:, 1:] - apart / 2
        scores = np.concatenate([-scores, scores], axis=1)
    return scores


def separations(rng, s, count):
    """How far apart the classes are after each of several trainings."""
    return s.apart + s.between * rng.normal(size=count)


def truths(s, rng):
    """Every measure on very many patients: `fixed`, of the mean training, and `average`, over trainings."""
    labels, of, hard = test_set(rng, s, MANY)
    one = np.ones((1, len(labels)))

    def measure(apart):
        scores = trained(rng, s, labels, of, hard, apart)
        return {name: float(weighted.MEASURES[name](labels, scores, one)[0]) for name in MEASURES}

    # Gauss-Hermite points of the distribution of trainings.
    points, weights = np.polynomial.hermite_e.hermegauss(7)
    values = [measure(s.apart + np.hypot(s.between, s.of_seeds) * x) for x in points]
    average = {n: float(np.dot(weights, [v[n] for v in values]) / weights.sum()) for n in MEASURES}
    return {"fixed": measure(s.apart), "average": average}


def contains(interval, truth):
    """(whether an interval contains the truth, its width), or (None, NaN) if there is no interval."""
    low, high = interval
    return (low <= truth <= high, high - low) if np.isfinite(low) else (None, float("nan"))


def not_rejected(p):
    """(whether a test at the 5 % level does not reject, NaN), or (None, NaN) if there is no p-value."""
    return (p >= 0.05 if np.isfinite(p) else None), float("nan")


def trial(s, rng, truth):
    """Yield (what is printed, measure, whether it contains the truth, width)."""
    labels, of, hard = test_set(rng, s)
    names = np.array([f"p{i:04d}" for i in of])
    fixed, other = (trained(rng, s, labels, of, hard, s.apart) for _ in range(2))
    seeds = s.of_seeds * rng.normal(size=3)
    several = [
        [trained(rng, s, labels, of, hard, a + seed) for a in separations(rng, s, 3) for seed in seeds]
        for _ in range(2)
    ]
    for measure in MEASURES:
        if measure == "f1_binary" and len(s.shares) > 2:
            continue
        function, fixed_truth, average = weighted.MEASURES[measure], truth["fixed"][measure], truth["average"][measure]
        one = statistics.over_patients(labels, fixed, names, function, weighted.KINDS[measure])
        yield "one network, over patients", measure, *contains(one, fixed_truth)
        if measure in NOT_IN_STUDIES:
            continue
        two = statistics.paired_patients(labels, (fixed, other), names, function)
        yield "two networks, difference over patients", measure, *contains(two, 0.0)
        judged = [
            [Judged(i // 3, names, functools.partial(function, labels, p), seed=i % 3) for i, p in enumerate(m)]
            for m in several
        ]
        tables = [several_runs.table(m) for m in judged]
        nine, three = several_runs.mean(tables[0]), several_runs.mean(several_runs.table(judged[0][::3]))
        yield "3 x 3 trainings, over patients and trainings", measure, *contains(nine.interval, average)
        difference = several_runs.difference(*tables).interval
        yield "3 x 3 trainings, difference of two methods", measure, *contains(difference, 0.0)
        once = several_runs.difference(judged[0][:1], judged[1][::3]).interval
        yield "1 training against 3, difference of two methods", measure, *contains(once, 0.0)
        yield "3 trainings, over patients and trainings", measure, *contains(three.interval, average)
    if len(s.shares) == 2 and len(set(labels)) == 2:
        yield from tests(labels, of, fixed, other)


def tests(labels, of, a, b):
    """The tests that assume independent rows, on images, and on the means of each patient as in a comparison."""
    count = np.bincount(of)
    mean = lambda x: np.stack([np.bincount(of, p) / count for p in x.T], axis=1)
    probability = lambda scores: 1 / (1 + np.exp(-2 * scores))
    of_patients = np.bincount(of, labels) / count
    for unit, truth, x, y in (
        ("image", labels, probability(a), probability(b)),
        ("patient", of_patients.astype(int), mean(probability(a)), mean(probability(b))),
    ):
        if len(set(truth)) == 2:
            delong = statistics.delong(truth, x[:, 1], y[:, 1])
            yield f"two networks, DeLong per {unit}", "auroc", *contains(delong.interval, 0.0)
        p = statistics.mcnemar(truth, x.argmax(1), y.argmax(1)).p
        yield f"two networks, McNemar per {unit}", "accuracy", *not_rejected(p)
