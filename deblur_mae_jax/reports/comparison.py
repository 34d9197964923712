"""Compare several runs on the same test images, and report the smallest difference that the set can detect."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.metrics import classification, segmentation, statistics, weighted
from deblur_mae_jax.metrics.statistics import Comparison, Interval
from deblur_mae_jax.reports import cases, predictions
from deblur_mae_jax.reports.cases import Cases, in_common
from deblur_mae_jax.reports.predictions import Predictions
from deblur_mae_jax.workdir import mirror
from deblur_mae_jax.workdir.run_folder import Workdir

Table = TypeVar("Table", Predictions, Cases)


@dataclasses.dataclass
class Run:
    """A finished run with its class predictions or its segmented cases."""

    name: str
    table: Any  # Predictions or Cases
    judged: Any
    numbers: dict[str, Any]

    @property
    def segments(self) -> bool:
        """Whether it is a segmentation."""
        return isinstance(self.table, Cases)


def read_run(path: str | Path) -> Run:
    """Load a finished run from its workdir or its address. Raises `UserError` if the run is not finished."""
    workdir = Workdir(mirror.opened(path, "RUN"))
    rows = workdir.predictions
    if not rows.exists():
        raise UserError(f"'{path}' holds no {rows.name}: it is not a finished run with labels")
    try:
        numbers = json.loads(workdir.measures.read_text())
        judged_on = numbers["judged_on"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path}': {workdir.measures.name} is missing or damaged: {type(error).__name__}") from error
    table: Any = cases.read(rows) if "labels" in numbers else predictions.read(rows)
    judged = table.where(table.split == judged_on)
    if isinstance(judged, Predictions):
        predictions.require_labels(judged, rows)
    return Run(Path(path).name, table, judged, numbers)


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Load several runs, each named by the end of its path that no other has. A run named twice is a `UserError`."""
    parts = [str(path).rstrip("/").split("/") for path in paths]
    twice = [path for i, path in enumerate(paths) if parts[i] in parts[:i]]
    if twice:
        raise UserError(f"the run '{twice[0]}' is named twice")
    runs = [read_run(path) for path in paths]
    for run, own in zip(runs, parts, strict=True):
        others = [other for other in parts if other != own]
        sizes = (size for size in range(1, len(own) + 1) if all(own[-size:] != other[-size:] for other in others))
        run.name = "/".join(own[-next(sizes, len(own)) :])
    return runs


def _short_names(p: Predictions) -> Any:
    """Folder and file name of every image, or `None` if these are not unique."""
    names = np.array(["/".join(name.split("/")[-2:]) for name in p.names])
    return names if len(set(names)) == len(names) else None


def aligned(a: Run, b: Run) -> tuple[Predictions, Predictions]:
    """Return the judged images of two runs in the same order. Raises `UserError` if the images differ."""
    if a.table.classes != b.table.classes:
        raise UserError(f"{a.name} and {b.name} have different classes: {a.table.classes}, {b.table.classes}")
    tables = [a.judged, b.judged]
    if set(a.judged.names) != set(b.judged.names):
        # One run may have read a folder and the other a manifest in another folder.
        short = [_short_names(p) for p in tables]
        if any(names is None for names in short) or set(short[0]) != set(short[1]):
            both = len(set(a.judged.names) & set(b.judged.names))
            raise UserError(
                f"{a.name} and {b.name} were not judged on the same images ({len(a.judged)} and "
                f"{len(b.judged)}, {both} in common): a paired comparison needs the same ones"
            )
        tables = [dataclasses.replace(p, names=n) for p, n in zip(tables, short, strict=True)]
    first, second = (p.where(np.argsort(p.names)) for p in tables)
    if (first.labels != second.labels).any():
        raise UserError(f"{a.name} and {b.name} disagree about the labels of the images")
    return same_patients(first, second, (a.name, b.name))


def same_patients(first: Table, second: Table, names: tuple[str, str]) -> tuple[Table, Table]:
    """Return two tables of the same images in the same order, with the patients of one in both.

    If only one of them knows the patients, both get its patients. Raises `UserError` if they disagree about which
    images show one patient.
    """
    known = [bool((t.groups != "").any()) for t in (first, second)]
    if all(known):
        where = [np.unique(t.patients, return_index=True, return_inverse=True)[1:] for t in (first, second)]
        starts = [index[which] for index, which in where]  # the first image of each image's patient
        apart = np.flatnonzero(starts[0] != starts[1])
        if len(apart):
            i = apart[0]
            raise UserError(
                f"{names[0]} and {names[1]} disagree about which images show one patient, for example about "
                f"'{first.names[i]}' (patients '{first.patients[i]}' and '{second.patients[i]}'): a paired comparison "
                "needs the same patients (a column `group`, config.data.group_pattern)"
            )
    groups = second.groups if known == [False, True] else first.groups
    return dataclasses.replace(first, groups=groups), dataclasses.replace(second, groups=groups)


def require_same_rule(runs: list[Run], metric: str = "") -> None:
    """Raise `UserError` if segmentations count absent labels, or surfaces by `metric`, in different ways."""
    first = runs[0]
    for run in runs[1:]:
        tolerances = [one.numbers.get("tolerance") for one in (first, run)]
        if metric == "surface_dice" and tolerances[0] != tolerances[1]:
            raise UserError(
                f"{first.name} and {run.name} have surface Dice at different distances (config.report.tolerance="
                f"{tolerances[0]} and {tolerances[1]}): judge both with the same setting"
            )
        ours, theirs = (one.numbers.get("empty", "skip") for one in (first, run))
        if ours != theirs:
            raise UserError(
                f"{first.name} and {run.name} count absent labels differently (config.report.empty={ours} and "
                f"{theirs}): judge both with the same setting"
            )


def pairs(runs: list[Run]) -> list[dict[str, Any]]:
    """Every pair of runs on the same test images, p-values adjusted by Holm's method over the pairs.

    AUROC is compared by DeLong's test (two classes) or by its interval over patients (more classes), accuracy by
    McNemar's test, macro F1 by its interval over patients. The two tests assume independent rows. With several images
    per patient they therefore compare patients (`unit`), by the mean probabilities of their images. For segmentations
    see `compare_cases`.
    """
    kinds = {run.segments for run in runs}
    if len(kinds) > 1:
        raise UserError("classifiers and segmentations cannot be compared")
    if kinds == {True}:
        require_same_rule(runs)
        rows = [compare_cases(a.judged, b.judged, (a.name, b.name)) for a, b in itertools.combinations(runs, 2)]
        adjusted = statistics.holm([row["wilcoxon"] for row in rows])
        return [row | {"wilcoxon_holm": p} for row, p in zip(rows, adjusted, strict=True)]
    rows = [_pair(a, b) for a, b in itertools.combinations(runs, 2)]
    for test in ("auroc", "accuracy"):
        adjusted = statistics.holm([row[test].p if test in row else np.nan for row in rows])
        for row, p in zip(rows, adjusted, strict=True):
            row[f"{test}_holm"] = p
    return rows


def _pair(a: Run, b: Run) -> dict[str, Any]:
    """Two classifiers on the same test images, before any adjustment of p-values."""
    first, second = aligned(a, b)
    patients = first.by_patient
    row: dict[str, Any] = {
        "a": a.name,
        "b": b.name,
        "images": len(first),
        "patients": len(np.unique(first.patients)),
    }
    row["unit"] = "image" if first.patients_known else "image, patients unknown"
    enough = row["patients"] >= statistics.MIN_PATIENTS
    f1 = classification.f1_macro
    row["f1_macro"] = f1(first.labels, first.probabilities) - f1(second.labels, second.probabilities)
    row["f1_macro_interval"] = statistics.paired_patients(
        first.labels,
        (first.probabilities, second.probabilities),
        first.patients,
        weighted.f1_macro,
    )
    if len(first.classes) > 2 and len(np.unique(first.labels)) > 1:
        row["auroc_macro"] = classification.auroc(first.labels, first.probabilities) - classification.auroc(
            second.labels, second.probabilities
        )
        both = first.probabilities, second.probabilities
        row["auroc_macro_interval"] = statistics.paired_patients(first.labels, both, first.patients, weighted.auroc)
    if len(patients) < len(first):
        first, second, row["unit"] = patients, second.by_patient, "patient"
    if len(first.classes) == 2 and len(np.unique(first.labels)) == 2:
        scores = first.probabilities[:, 1], second.probabilities[:, 1]
        row["auroc"] = _of_enough(statistics.delong(first.labels, *scores), enough)
    row["accuracy"] = _of_enough(
        statistics.mcnemar(first.labels, first.probabilities.argmax(1), second.probabilities.argmax(1)), enough
    )
    return row


def _of_enough(found: Comparison, enough: bool) -> Comparison:
    """A comparison without an interval and a p-value where there are too few patients for an inference."""
    nothing = Interval(float("nan"), float("nan"))
    return found if enough else found._replace(interval=nothing, p=float("nan"), smallest=float("nan"))


COMPARED = ("dice", "hd95", "surface_distance")


def aligned_cases(a: Cases, b: Cases, names: tuple[str, str]) -> tuple[Cases, Cases]:
    """Return the cases of two runs in the same order. Raises `UserError` if the cases differ."""
    if a.labels != b.labels:
        raise UserError(f"{names[0]} and {names[1]} have different labels: {a.labels}, {b.labels}")
    if a.unit != b.unit:
        raise UserError(f"{names[0]} and {names[1]} have distances in different units: {a.unit}, {b.unit}")
    if set(a.names) != set(b.names):
        both = len(set(a.names) & set(b.names))
        raise UserError(
            f"{names[0]} and {names[1]} were not judged on the same images ({len(a)} and {len(b)}, {both} in common): "
            "a paired comparison needs the same ones"
        )
    return same_patients(a.where(np.argsort(a.names)), b.where(np.argsort(b.names)), names)


def compare_cases(a: Cases, b: Cases, names: tuple[str, str]) -> dict[str, Any]:
    """Compare two runs by the mean difference over cases of each measure of `COMPARED`, averaged over labels.

    The result has the keys

    <measure>: mean of a - b, over the labels for which both runs define the measure; NaN if there are none.
    <measure>_left_out: number of labels, over all cases, that only one of the runs defines.
    <measure>_interval: its interval over patients.
    wilcoxon: two-sided p of the signed-rank test of Dice over patients (means of their cases).
    smallest: smallest difference in Dice that this set can detect with 80 % power at the 5 % level.
    """
    first, second = aligned_cases(a, b, names)
    patients, which = np.unique(first.patients, return_inverse=True)
    known = bool((first.groups != "").any())
    row: dict[str, Any] = {
        "a": names[0], "b": names[1], "images": len(first), "patients": len(patients),
        "unit": "patient" if len(patients) < len(first) else "image" if known else "image, patients unknown",
        "length": first.unit,
    }  # fmt: skip
    for measure in COMPARED:
        of_a, of_b, row[f"{measure}_left_out"] = in_common(first, second, measure)
        difference = of_a - of_b
        finite = np.isfinite(difference)
        row[measure] = float(difference[finite].mean()) if finite.any() else float("nan")
        row[f"{measure}_interval"] = (
            statistics.of_mean(difference[finite], first.patients[finite])
            if finite.any()
            else statistics.Interval(np.nan, np.nan)
        )
    of_a, of_b, _ = in_common(first, second, "dice")
    difference = of_a - of_b
    finite = np.isfinite(difference)
    counts = np.bincount(which[finite], minlength=len(patients))
    means = np.bincount(which[finite], difference[finite], len(patients))[counts > 0] / counts[counts > 0]
    row["wilcoxon"], row["smallest"] = statistics.signed_rank(means)
    return row


class OverFolds(NamedTuple):
    """The mean difference of two methods over the same folds, with the corrected resampled t-test.

    left_out: number of labels, over all folds and cases, that only one of the methods defines.
    unit: of a distance; empty for a share.
    """

    difference: float
    t: float
    p: float
    left_out: int
    unit: str


def over_folds(a: list[Run], b: list[Run], metric: str = "f1_macro") -> OverFolds:
    """Compare two methods over the same folds. Raises `UserError`.

    metric: of classifiers or of segmentations.
    """
    if len(a) != len(b) or len(a) < 2:
        raise UserError(f"two methods over the same folds are needed, got {len(a)} and {len(b)} runs")
    by_mask = all(run.segments for run in [*a, *b])
    if by_mask:
        require_same_rule([*a, *b], metric)
    measures: Any = segmentation.MEASURES if by_mask else classification.METRICS
    if metric not in measures:
        raise unknown("--metric", metric, measures)
    values, lost, unit = [], 0, ""
    for one, other in zip(a, b, strict=True):
        if by_mask:
            *both, left_out = in_common(*aligned_cases(one.judged, other.judged, (one.name, other.name)), metric)
            if np.isnan(both[0]).all():
                raise UserError(
                    f"{metric} is not defined between {one.name} and {other.name}: both must have found the same label "
                    "in one image at least. Compare --metric=dice"
                )
            values.append([float(np.nanmean(fold)) for fold in both])
            lost += left_out
            unit = one.judged.unit if metric in segmentation.LENGTHS else ""
            continue
        measure = classification.METRICS[metric]
        values.append([measure(p.labels, p.probabilities) for p in aligned(one, other)])
    x, y = np.array(values).T
    undefined = [run.name for run, both in zip(a, values, strict=True) if not np.isfinite(both).all()]
    if undefined:
        raise UserError(
            f"--metric={metric} is not defined in the fold of {undefined[0]}: its test images may lack a class. "
            "Compare --metric=accuracy"
        )
    if len({frozenset(run.judged.names) for run in a}) < len(a):
        raise UserError("the folds have the same test images: these are seeds, not folds")
    n_test = float(np.mean([len(run.judged) for run in a]))
    n_train = float(np.mean([run.numbers["n_train"] for run in a]))
    t, p = statistics.corrected_t_test(x, y, n_train, n_test)
    return OverFolds(float((x - y).mean()), t, p, lost, unit)
