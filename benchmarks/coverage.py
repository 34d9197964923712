"""Count how often the printed 95 % intervals contain the truth, in simulations where it is known.

    python -m benchmarks.coverage --trials=2000
    python -m benchmarks.coverage --trials=2000 --situations="volumes,few volumes"

Classifiers are simulated in `coverage_classes.py`, segmenters in `coverage_masks.py`, cross-validation in
`coverage_folds.py`. Every trial draws new patients and new trainings. Of a test that gives a p-value, the share of
trials with p >= 0.05 is counted where the compared methods are equally good. The number of trials bounds how precisely
a coverage is known: with 2,000, to about 1 percent point (two standard errors).
"""

import argparse
import dataclasses
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import common, coverage_classes, coverage_folds, coverage_masks

SITUATIONS = {
    name: (kind, situation)
    for kind in (coverage_classes, coverage_masks, coverage_folds)
    for name, situation in kind.SITUATIONS.items()
}


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--situations", default=",".join(SITUATIONS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="")
    return parser.parse_args()


def coverage(kind, s, trials, seed):
    """Coverage, its standard error, share of trials without an interval and median width of every interval.

    kind: the module that simulates. Its `truths` gives the true measures, its `trial` yields (what is printed, measure,
    whether it contains the truth or `None`, width).
    """
    rng = np.random.default_rng(seed)
    truth = kind.truths(s, rng)
    hits, widths, missing = {}, {}, {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(trials):
            for printed, measure, hit, width in kind.trial(s, rng, truth):
                key = printed, measure
                hits.setdefault(key, [])
                widths.setdefault(key, [])
                if hit is None:
                    missing[key] = missing.get(key, 0) + 1
                    continue
                hits[key].append(hit)
                widths[key].append(width)
    out = {}
    for key, found in hits.items():
        share = float(np.mean(found)) if found else float("nan")
        out.setdefault(key[0], {})[key[1]] = {
            "coverage": share,
            "standard_error": float(np.sqrt(share * (1 - share) / max(len(found), 1))),
            "median_width": float(np.median(widths[key])) if found else float("nan"),
            "without": missing.get(key, 0) / trials,
        }
    return {"truth": truth, "intervals": out}


def main():
    """Simulate, print, write JSON."""
    a = parse()
    wrong = set(a.situations.split(",")) - set(SITUATIONS)
    if wrong:
        sys.exit(f"--situations: unknown {', '.join(sorted(wrong))}. Choices: {', '.join(SITUATIONS)}")
    rows, started = {}, time.monotonic()
    for name in a.situations.split(","):
        kind, s = SITUATIONS[name]
        rows[name] = {**dataclasses.asdict(s), "trials": a.trials, **coverage(kind, s, a.trials, a.seed)}
        print(f"{name}: {s.patients} patients, {s.images} images ({time.monotonic() - started:.0f} s)")
        for printed, measures in rows[name]["intervals"].items():
            shown = ", ".join(f"{m} {100 * v['coverage']:.1f}" for m, v in measures.items())
            print(f"  {printed:52s} {shown}", flush=True)
    common.write(a.output, "coverage", __doc__.splitlines()[0], {"situations": rows})


if __name__ == "__main__":
    main()
