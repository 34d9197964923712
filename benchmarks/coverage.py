"""Count how often the printed 95 % intervals contain the truth, in simulations where it is known.

    python -m benchmarks.coverage --trials=2000

Test sets have the numbers of patients, images and classes of the public sets of docs/results.md, and classifiers about
as good as those there. Images of a patient resemble each other, all networks find the same images hard, and trainings
differ. The truth is the measure on 200,000 patients, averaged over trainings where the interval covers those. Every
trial draws new patients and new trainings. The number of trials bounds how precisely a coverage is known: with 2,000,
to about 1 percent point (two standard errors).
"""

import argparse
import dataclasses
import functools
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common
from deblur_mae_jax.metrics import several_runs, statistics, weighted
from deblur_mae_jax.metrics.several_runs import Judged

MEASURES = ("accuracy", "balanced_accuracy", "f1_binary", "f1_macro", "auroc", "average_precision")
MANY = 200_000


@dataclasses.dataclass
class Situation:
    """A test set and how good a classifier is on it.

    shares: share of every class.
    apart: how far apart the classes are; the variances within a class add up to 1.
    between: standard deviation of `apart` between trainings.
    """

    patients: int
    images: int
    shares: tuple[float, ...]
    apart: float
    between: float = 0.15


SITUATIONS = {
    "BUS-BRA": Situation(214, 365, (0.67, 0.33), 1.3),
    "MMOTU": Situation(77, 153, (0.2, 0.18, 0.17, 0.15, 0.1, 0.08, 0.07, 0.05), 1.3),
    "DDTI": Situation(29, 45, (0.84, 0.16), 1.0),
    "phantoms": Situation(40, 120, (0.5, 0.5), 3.0),
}


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--situations", default=",".join(SITUATIONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="")
    return parser.parse_args()


def test_set(rng, s, patients=None):
    """Labels `(N,)`, patients `(N,)` and what makes an image hard for every network `(N, C)`."""
    P = patients or s.patients
    counts = np.full(P, s.images // s.patients)
    counts[: round(P * (s.images / s.patients - counts[0]))] += 1
    of = np.repeat(np.arange(P), rng.permutation(counts))
    labels = rng.choice(len(s.shares), P, p=np.array(s.shares) / sum(s.shares))[of]
    shape = (P, len(s.shares))
    hard = np.sqrt(0.4) * rng.normal(size=shape)[of] + np.sqrt(0.3) * rng.normal(size=(len(of), len(s.shares)))
    return labels, of, hard


def trained(rng, s, labels, hard, apart):
    """Scores `(N, C)` of one network; two classes share one score."""
    scores = apart * np.eye(len(s.shares))[labels] + hard + np.sqrt(0.3) * rng.normal(size=hard.shape)
    if len(s.shares) == 2:
        scores = scores[:, 1:] - apart / 2
        scores = np.concatenate([-scores, scores], axis=1)
    return scores


def separations(rng, s, count):
    """How far apart the classes are after each of several trainings."""
    return s.apart + s.between * rng.normal(size=count)


def truths(s, rng):
    """Every measure on very many patients: of the mean training, and averaged over trainings."""
    labels, _, hard = test_set(rng, s, MANY)
    one = np.ones((1, len(labels)))
    measure = lambda apart: {
        name: float(weighted.MEASURES[name](labels, trained(rng, s, labels, hard, apart), one)[0]) for name in MEASURES
    }
    # Gauss-Hermite points of the distribution of trainings.
    points, weights = np.polynomial.hermite_e.hermegauss(7)
    values = [measure(s.apart + s.between * x) for x in points]
    average = {n: float(np.dot(weights, [v[n] for v in values]) / weights.sum()) for n in MEASURES}
    return measure(s.apart), average


def trial(s, rng):
    """Yield (kind of interval, measure, interval, whether its truth is the average over trainings)."""
    labels, of, hard = test_set(rng, s)
    names = np.array([f"p{i:04d}" for i in of])
    fixed = trained(rng, s, labels, hard, s.apart)
    other = trained(rng, s, labels, hard, s.apart)
    several = [[trained(rng, s, labels, hard, a) for a in separations(rng, s, 3) for _ in range(3)] for _ in range(2)]
    for measure in MEASURES:
        if measure == "f1_binary" and len(s.shares) > 2:
            continue
        function = weighted.MEASURES[measure]
        yield (
            "one network, over patients",
            measure,
            statistics.over_patients(labels, fixed, names, function),
            "fixed",
        )
        yield (
            "two networks, difference over patients",
            measure,
            statistics.paired_patients(labels, (fixed, other), names, function),
            "zero",
        )
        judged = [
            [Judged(i // 3, names, functools.partial(function, labels, p)) for i, p in enumerate(m)] for m in several
        ]
        tables = [several_runs.table(m) for m in judged]
        yield "3 x 3 trainings, over patients and trainings", measure, several_runs.mean(tables[0]).interval, "average"
        yield "3 x 3 trainings, difference of two methods", measure, several_runs.difference(*tables).interval, "zero"
        three = several_runs.table(judged[0][::3])
        yield "3 trainings, over patients and trainings", measure, several_runs.mean(three).interval, "average"
    if len(s.shares) == 2:
        delong = statistics.delong(labels, fixed[:, 1], other[:, 1]) if len(set(labels)) == 2 else None
        if delong:
            yield "two networks, DeLong per image", "auroc", delong.interval, "zero"


def coverage(s, trials, seed):
    """Coverage, its standard error, share of trials without an interval and median width of every interval."""
    rng = np.random.default_rng(seed)
    fixed, average = truths(s, rng)
    hits, widths, missing = {}, {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(trials):
            for kind, measure, (low, high), truth in trial(s, rng):
                key = kind, measure
                if not np.isfinite(low):
                    missing[key] = missing.get(key, 0) + 1
                    continue
                value = {"fixed": fixed, "average": average}.get(truth, {}).get(measure, 0.0)
                hits.setdefault(key, []).append(low <= value <= high)
                widths.setdefault(key, []).append(high - low)
    out = {}
    for key, found in hits.items():
        share = float(np.mean(found))
        out.setdefault(key[0], {})[key[1]] = {
            "coverage": share,
            "standard_error": float(np.sqrt(share * (1 - share) / len(found))),
            "median_width": float(np.median(widths[key])),
            "without": missing.get(key, 0) / trials,
        }
    return {"truth": average, "intervals": out}


def main():
    """Simulate, print, write JSON."""
    a = parse()
    wrong = set(a.situations.split(",")) - set(SITUATIONS)
    if wrong:
        sys.exit(f"--situations: unknown {', '.join(sorted(wrong))}. Choices: {', '.join(SITUATIONS)}")
    rows, started = {}, time.monotonic()
    for name in a.situations.split(","):
        s = SITUATIONS[name]
        rows[name] = {**dataclasses.asdict(s), **coverage(s, a.trials, a.seed)}
        print(f"{name}: {s.patients} patients, {s.images} images ({time.monotonic() - started:.0f} s)")
        for kind, measures in rows[name]["intervals"].items():
            shown = ", ".join(f"{m} {100 * v['coverage']:.1f}" for m, v in measures.items())
            print(f"  {kind:46s} {shown}", flush=True)
    common.write(a.output, "coverage", __doc__.splitlines()[0], {"trials": a.trials, "situations": rows})


if __name__ == "__main__":
    main()
