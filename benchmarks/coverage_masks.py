"""Simulated segmenters for `benchmarks.coverage`: Dice and surface distances of images and volumes.

A case is hard for every network, cases of a patient resemble each other, and now and then the object is missed: its
Dice is 0 and it has no distance. Dice is skewed to the left, distances to the right, as in the tables of cases under
benchmarks/results/studies. The truth is the mean over 200,000 patients.
"""

import dataclasses
import functools

import numpy as np
from scipy import special, stats

from benchmarks.coverage_classes import contains, drawn, not_rejected, two_levels
from deblur_mae_jax.metrics import several_runs, statistics
from deblur_mae_jax.metrics.several_runs import Judged
from deblur_mae_jax.reports import cases

MANY = 200_000
MEASURES = ("dice", "hd95")


@dataclasses.dataclass
class Situation:
    """A test set and how good a segmenter is on it.

    dice: Dice of the median case.
    spread: standard deviation of the logit of Dice between cases; distances are its inverse.
    missed: share of cases in which the object is not found.
    between: standard deviation, between trainings, of the logit.
    of_seeds: the same between the seeds of the fine-tuning, each of which all pre-trainings share.
    """

    patients: int
    images: int
    dice: float
    spread: float
    missed: float
    between: float = 0.1
    of_seeds: float = 0.0


SITUATIONS = {
    "lesions": Situation(214, 365, 0.85, 1.2, 0.04),
    "nodules": Situation(29, 45, 0.7, 1.2, 0.05),
    "volumes": Situation(26, 26, 0.85, 0.4, 0.0),
    "few volumes": Situation(10, 10, 0.8, 0.6, 0.02),
    "volumes with shared seeds": Situation(26, 26, 0.85, 0.4, 0.0, of_seeds=0.1),
}


def hardness(rng, s, patients=None):
    """Patients `(N,)`, and for every case how hard it is and whether it is missed by a network that is unlucky."""
    of = drawn(rng, patients or s.patients, s.images / s.patients)
    return of, two_levels(rng, of, 1, 0.5)[:, 0], rng.random(len(of))


def segmented(rng, s, of, hard, unlucky, shift):
    """Dice `(N,)` and 95 % distance in pixels `(N,)` of one network; missed cases have no distance."""
    own = two_levels(rng, of, 1, 0.5)[:, 0]
    z = special.logit(s.dice) + shift + s.spread * (np.sqrt(0.7) * hard + np.sqrt(0.3) * own)
    # Four of five misses are common to all networks.
    missed = np.where(rng.random(len(of)) < 0.8, unlucky, rng.random(len(of))) < s.missed
    dice = np.where(missed, 0.0, special.expit(z))
    return {"dice": dice, "hd95": np.where(missed, np.nan, 10 * np.exp(-z / 2))}


def truths(s, rng):
    """The mean over very many patients: `fixed`, of the mean training, and `average`, over trainings."""
    of, hard, unlucky = hardness(rng, s, MANY)
    measure = lambda shift: {m: float(np.nanmean(v)) for m, v in segmented(rng, s, of, hard, unlucky, shift).items()}
    points, weights = np.polynomial.hermite_e.hermegauss(7)
    values = [measure(np.hypot(s.between, s.of_seeds) * x) for x in points]
    average = {m: float(np.dot(weights, [v[m] for v in values]) / weights.sum()) for m in MEASURES}
    return {"fixed": measure(0.0), "average": average}


def mean_of(values, weights):
    """Mean `(B,)` of the cases that have the measure."""
    found = np.isfinite(values)
    return weights[:, found] @ values[found] / weights[:, found].sum(axis=1)


def trial(s, rng, truth):
    """Yield (what is printed, measure, whether it contains the truth, width)."""
    of, hard, unlucky = hardness(rng, s)
    names = np.array([f"p{i:04d}" for i in of])
    network = lambda shift: segmented(rng, s, of, hard, unlucky, shift)
    one, other = network(0.0), network(0.0)
    seeds = s.of_seeds * rng.normal(size=3)
    several = [[network(own + seed) for own in s.between * rng.normal(size=3) for seed in seeds] for _ in range(2)]
    for measure in MEASURES:
        entry = cases.entry(one[measure], names, True)
        interval = tuple(np.nan if entry[end] is None else entry[end] for end in ("low", "high"))
        yield "one network, over patients", measure, *contains(interval, truth["fixed"][measure])
        gain = one[measure] - other[measure]
        found = np.isfinite(gain)
        two = statistics.of_mean(gain[found], names[found])
        yield "two networks, difference over patients", measure, *contains(two, 0.0)
        tables = [
            several_runs.table(
                [
                    Judged(i // 3, names, functools.partial(mean_of, values[measure]), seed=i % 3)
                    for i, values in enumerate(m)
                ]
            )
            for m in several
        ]
        nine = several_runs.mean(tables[0], share=measure == "dice").interval
        yield "3 x 3 trainings, over patients and trainings", measure, *contains(nine, truth["average"][measure])
        difference = several_runs.difference(*tables).interval
        yield "3 x 3 trainings, difference of two methods", measure, *contains(difference, 0.0)
    gain = np.bincount(of, one["dice"] - other["dice"]) / np.bincount(of)
    yield "two networks, Wilcoxon per patient", "dice", *not_rejected(stats.wilcoxon(gain[gain != 0]).pvalue)
