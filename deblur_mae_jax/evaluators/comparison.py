"""Several runs on the same test images: is one better, and could this set have shown it?"""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.evaluators import (
    case_comparison,
    cases,
    classification,
    predictions,
    segmentation,
    statistics,
)
from deblur_mae_jax.evaluators.cases import Cases
from deblur_mae_jax.evaluators.predictions import Predictions


@dataclasses.dataclass
class Run:
    """A finished run: its predictions of classes, or its segmented cases."""

    name: str
    table: Any  # Predictions or Cases
    judged: Any
    numbers: dict[str, Any]

    @property
    def segments(self) -> bool:
        """Whether it is a segmentation."""
        return isinstance(self.table, Cases)


def read_run(folder: Path) -> Run:
    """What `main.py` left in a workdir. Raises `UserError` where it is not finished."""
    path = folder / "predictions.csv"
    if not path.exists():
        raise UserError(
            f"'{folder}' holds no predictions.csv: it is not a finished run with labels"
        )
    numbers = json.loads((folder / "metrics.json").read_text())
    table: Any = cases.read(path) if "labels" in numbers else predictions.read(path)
    judged = table.where(table.split == numbers["judged_on"])
    return Run(folder.name, table, judged, numbers)


def _short_names(p: Predictions) -> Any:
    """Folder and file of every image, `None` where that does not tell them apart."""
    names = np.array(["/".join(name.split("/")[-2:]) for name in p.names])
    return names if len(set(names)) == len(names) else None


def aligned(a: Run, b: Run) -> tuple[Predictions, Predictions]:
    """The judged images of two runs in the same order. Raises `UserError` if they are not the same."""
    if a.table.classes != b.table.classes:
        raise UserError(
            f"{a.name} and {b.name} have other classes: {a.table.classes}, {b.table.classes}"
        )
    tables = [a.judged, b.judged]
    if set(a.judged.names) != set(b.judged.names):
        # One run may have read a folder and the other a manifest that lies elsewhere.
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
    return first, second


def pairs(runs: list[Run], resamples: int = 1000, seed: int = 0) -> list[dict[str, Any]]:
    """Every pair of runs on the same test images, p-values adjusted by Holm's method over the pairs.

    AUROC by DeLong's test (two classes), accuracy by McNemar's, macro F1 by a bootstrap over patients. The
    first two take their rows for independent, so with several images per patient they compare patients
    (`unit`), by the mean of the probabilities of their images. Segmentations as `case_comparison` says.
    """
    kinds = {run.segments for run in runs}
    if len(kinds) > 1:
        raise UserError("classifiers and segmentations cannot be compared")
    if kinds == {True}:
        rows = [
            case_comparison.compare(a.judged, b.judged, (a.name, b.name), resamples, seed)
            for a, b in itertools.combinations(runs, 2)
        ]
        adjusted = statistics.holm([row["wilcoxon"] for row in rows])
        return [row | {"wilcoxon_holm": p} for row, p in zip(rows, adjusted, strict=True)]
    rows = []
    for a, b in itertools.combinations(runs, 2):
        first, second = aligned(a, b)
        patients = first.by_patient
        row: dict[str, Any] = {
            "a": a.name,
            "b": b.name,
            "images": len(first),
            "patients": len(patients),
        }
        row["unit"] = "image" if first.patients_known else "image, patients unknown"
        f1 = classification.f1_macro
        row["f1_macro"] = f1(first.labels, first.probabilities) - f1(
            second.labels, second.probabilities
        )
        row["f1_macro_interval"] = statistics.paired_patients(first, second, f1, resamples, seed)
        if len(patients) < len(first):
            first, second, row["unit"] = patients, second.by_patient, "patient"
        if len(first.classes) == 2 and len(np.unique(first.labels)) == 2:
            scores = first.probabilities[:, 1], second.probabilities[:, 1]
            row["auroc"] = statistics.delong(first.labels, *scores)
        row["accuracy"] = statistics.mcnemar(
            first.labels, first.probabilities.argmax(1), second.probabilities.argmax(1)
        )
        rows.append(row)
    for test in ("auroc", "accuracy"):
        adjusted = statistics.holm([row[test].p if test in row else np.nan for row in rows])
        for row, p in zip(rows, adjusted, strict=True):
            row[f"{test}_holm"] = p
    return rows


def over_folds(a: list[Run], b: list[Run], metric: str = "f1_macro") -> tuple[float, float, float]:
    """(mean difference, t, p) of two methods over the same folds, by the corrected resampled t-test."""
    if len(a) != len(b) or len(a) < 2:
        raise UserError(
            f"two methods over the same folds are needed, got {len(a)} and {len(b)} runs"
        )
    by_mask = all(run.segments for run in [*a, *b])
    known: Any = segmentation.MEASURES if by_mask else classification.METRICS
    if metric not in known:
        raise unknown("--metric", metric, known)
    values = []
    for one, other in zip(a, b, strict=True):
        if by_mask:
            both = case_comparison.aligned(one.judged, other.judged, (one.name, other.name))
            values.append([float(np.nanmean(part.mean_of_labels(metric))) for part in both])
            continue
        measure = classification.METRICS[metric]
        values.append([measure(p.labels, p.probabilities) for p in aligned(one, other)])
    x, y = np.array(values).T
    if len({frozenset(run.judged.names) for run in a}) < len(a):
        raise UserError("the folds have the same test images: these are seeds, not folds")
    n_test = float(np.mean([len(run.judged) for run in a]))
    n_train = float(np.mean([run.numbers["n_train"] for run in a]))
    t, p = statistics.corrected_t_test(x, y, n_train, n_test)
    return float((x - y).mean()), t, p
