"""Compare finished runs: classifiers, or segmentations.

    python scripts/compare_runs.py runs/scratch runs/mae runs/d2mae
    python scripts/compare_runs.py --folds --a runs/mae_fold* --b runs/d2mae_fold*

Runs judged on the same test images are compared pair by pair: AUROC by DeLong's test, accuracy by McNemar's exact
test, both per patient if patients have several images; macro F1 by an interval over patients. P-values are
adjusted for the number of pairs by Holm's method. The last column of each test is the smallest difference that this
test set can detect with 80 % power; detecting a smaller one needs a larger set. Segmentations are compared in
Dice and distances by intervals over patients, Dice also by Wilcoxon's signed-rank test. With --folds, the two methods
are compared over the folds of a cross-validation by the corrected resampled t-test (Nadeau and Bengio 2003).
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.metrics import segmentation
from deblur_mae_jax.reports import comparison


def parse(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="workdirs of runs judged on the same images")
    parser.add_argument("--folds", action="store_true", help="two methods over the same folds")
    parser.add_argument("--a", nargs="*", default=[], help="with --folds: the runs of one method")
    parser.add_argument("--b", nargs="*", default=[], help="with --folds: the runs of the other method")
    parser.add_argument("--metric", default="", help="with --folds; f1_macro or dice if unset")
    return parser.parse_args(arguments)


def _interval(low, high, over):
    """An interval; it is NaN where both runs have the same predictions or there are few patients."""
    return f"{low:+.3f} to {high:+.3f}{over}" if low == low else "no interval"


def _smallest(difference, digits):
    """The smallest difference that the test detects with 80 % power; NaN or 0 for equal predictions."""
    if difference == float("inf"):
        return "no difference is detectable: too few patients"
    return f"smallest detectable {difference:{digits}}" if difference > 0 else ""


def _test(found, adjusted):
    interval, smallest = _interval(*found.interval, over=""), _smallest(found.smallest, ".3f")
    if found.p != found.p:
        return f"{found.difference:+.4f} ({interval})  no test: too few patients, or too little variance"
    return f"{found.difference:+.4f} ({interval})  p {found.p:.3g}, Holm {adjusted:.3g}  {smallest}".rstrip()


def compare(arguments):
    """Print the comparison."""
    if arguments.folds:
        a, b = (comparison.read_runs(sorted(paths)) for paths in (arguments.a, arguments.b))
        usual = "dice" if all(run.segments for run in [*a, *b]) else "f1_macro"
        metric = arguments.metric or usual
        found = comparison.over_folds(a, b, metric)
        unit = found.unit and f" {found.unit}"
        test = f"t {found.t:.3f}, p {found.p:.3g}" if found.p == found.p else "no test: the folds differ equally"
        missed = f"; without {found.left_out} labels that only one of them found" if found.left_out else ""
        print(f"{metric}, a minus b over {len(a)} folds: {found.difference:+.4f}{unit}, {test}{missed}")
        return
    if len(arguments.runs) < 2:
        raise UserError("name at least two workdirs to compare")
    runs = comparison.read_runs(arguments.runs)
    print("each run, per image")
    for run in runs:
        judged = run.numbers["splits"][run.numbers["judged_on"]]
        parts = []
        shown = ("dice", "hd95", "surface_distance") if run.segments else ("accuracy", "f1_macro", "auroc")
        for name in shown:
            entry = judged["per_image"][name]
            if entry["value"] is not None:
                unit = f" {run.judged.unit}" if name in segmentation.LENGTHS else ""
                text = f"{name} {entry['value']:.4f}{unit}"
                if entry.get("low") is not None:
                    text += f" ({entry['low']:.3f} to {entry['high']:.3f})"
                parts.append(text)
        print(f"{run.name:24s} {'  '.join(parts)}")
        for line in run.numbers.get("leakage", []):
            print(f"  LEAK  {line}")
    for row in comparison.pairs(runs):
        known = "unknown" not in row["unit"]
        over = ", over patients" if known else ", over images"
        people = f"of {row['patients']} patients" if known else "(patients unknown: every image counts as one patient)"
        print(f"\n{row['a']} minus {row['b']}, {row['images']} images {people}")
        if "dice" in row:
            for name in comparison.COMPARED:
                low, high = row[f"{name}_interval"]
                lost = row[f"{name}_left_out"]
                missed = f"  without {lost} labels that only one of them found" if lost else ""
                unit = "" if name == "dice" else f" {row['length']}"
                mean = (
                    f"{row[name]:+.4f}{unit} ({_interval(low, high, over)})" if row[name] == row[name] else "undefined"
                )
                print(f"  {name:18s} {mean}{missed}")
            p, holm = row["wilcoxon"], row["wilcoxon_holm"]
            detectable = _smallest(row["smallest"], ".3f").replace("detectable", "detectable mean difference")
            found = f"p {p:.3g}, Holm {holm:.3g}" if p == p else "no test: too few patients"
            print(f"  Wilcoxon, Dice     {found}  {detectable}".rstrip())
            continue
        unit = f"per {row['unit'].partition(',')[0]}"
        if "auroc" in row:
            print(f"  {'AUROC, ' + unit:22s}{_test(row['auroc'], row['auroc_holm'])}")
        if "auroc_macro" in row:
            low, high = row["auroc_macro_interval"]
            print(f"  {'AUROC, per image':22s}{row['auroc_macro']:+.4f} ({_interval(low, high, over)})")
        print(f"  {'accuracy, ' + unit:22s}{_test(row['accuracy'], row['accuracy_holm'])}")
        low, high = row["f1_macro_interval"]
        print(f"  {'macro F1, per image':22s}{row['f1_macro']:+.4f} ({_interval(low, high, over)})")


def main():
    """Run and report errors in one line."""
    try:
        compare(parse())
    except UserError as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
