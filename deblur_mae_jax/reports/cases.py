"""Table of segmentation measures, one row per case and label; every number of a report is computed from it."""

from __future__ import annotations

import csv
import dataclasses
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.metrics import segmentation, statistics

_BEFORE = ("image", "group", "split", "label")
_AFTER = ("truth_size", "predicted_size", "unit")


@dataclasses.dataclass
class Cases:
    """N cases with L labels (background not counted).

    values: every measure of `segmentation.MEASURES`, `(N, L)`; NaN if not defined.
    truth_size, predicted_size: size of every label, `(N, L)`: mm^3 of volumes and mm^2 of images; voxels and pixels if
        `unit` is "px".
    unit: unit of distances, "mm" or "px".
    """

    labels: list[str]
    names: np.ndarray
    groups: np.ndarray
    split: np.ndarray
    values: dict[str, np.ndarray]
    truth_size: np.ndarray
    predicted_size: np.ndarray
    unit: str

    def __len__(self) -> int:
        return len(self.names)

    def where(self, rows: np.ndarray) -> Cases:
        """The cases that a mask or a list of numbers selects."""
        return dataclasses.replace(
            self,
            names=self.names[rows],
            groups=self.groups[rows],
            split=self.split[rows],
            values={name: v[rows] for name, v in self.values.items()},
            truth_size=self.truth_size[rows],
            predicted_size=self.predicted_size[rows],
        )

    @property
    def patients(self) -> np.ndarray:
        """The group of every case; a case without a group uses its name."""
        return np.where(self.groups == "", self.names, self.groups)

    @property
    def missed(self) -> np.ndarray:
        """Number of cases per label `(L,)` in which the truth contains the label and the prediction does not."""
        return ((self.truth_size > 0) & (self.predicted_size == 0)).sum(axis=0)

    @property
    def false_alarms(self) -> np.ndarray:
        """Number of cases per label `(L,)` in which the prediction contains the label and the truth does not."""
        return ((self.truth_size == 0) & (self.predicted_size > 0)).sum(axis=0)

    def mean_of_labels(self, measure: str) -> np.ndarray:
        """Mean of a measure per case `(N,)`, over the labels for which it is defined."""
        return _over_labels(self.values[measure])

    @property
    def missed_labels(self) -> np.ndarray:
        """Number of labels per case `(N,)` that the truth contains and the prediction does not."""
        return ((self.truth_size > 0) & (self.predicted_size == 0)).sum(axis=1)

    def write(self, path: Path) -> None:
        """Write a CSV with the columns image, group, split, label, measures, sizes and unit."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow([*_BEFORE, *segmentation.MEASURES, *_AFTER])
            for i, name in enumerate(self.names):
                for j, label in enumerate(self.labels):
                    row = [repr(float(self.values[m][i, j])) for m in segmentation.MEASURES]
                    sizes = [repr(float(s[i, j])) for s in (self.truth_size, self.predicted_size)]
                    out.writerow([name, self.groups[i], self.split[i], label, *row, *sizes, self.unit])


def _over_labels(values: np.ndarray) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a case without any label is NaN
        return np.nanmean(values, axis=1)


def in_common(a: Cases, b: Cases, measure: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean of a measure per case `(N,)` of two runs, over the labels for which both define it.

    A distance is not defined for a label that a run has missed; a mean over the labels that are left would favour that
    run. Returned last is the number of labels, over all cases, that only one of the runs defines.
    a, b: the same cases in the same order.
    """
    first, second = a.values[measure], b.values[measure]
    both = np.isfinite(first) & np.isfinite(second)
    alone = int((np.isfinite(first) ^ np.isfinite(second)).sum())
    return _over_labels(np.where(both, first, np.nan)), _over_labels(np.where(both, second, np.nan)), alone


def read(path: Path) -> Cases:
    """Read a table written by `Cases.write`. Raises `UserError` for any other file."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read '{path}': {error}") from error
    # Earlier versions wrote no IoU, which follows from the Dice.
    if not rows or not {*_BEFORE, *segmentation.MEASURES, *_AFTER} - {"iou"} <= set(columns):
        raise UserError(f"'{path}' is not a table of segmentations: its columns are {columns}")
    labels = list(dict.fromkeys(row["label"] for row in rows))
    images = list(dict.fromkeys(row["image"] for row in rows))
    places = {(row["image"], row["label"]): row for row in rows}
    if not len(places) == len(rows) == len(images) * len(labels):
        raise UserError(f"'{path}' is not a table of segmentations: every image needs one row of each label")
    rows = [places[image, label] for image in images for label in labels]  # a spreadsheet may have sorted them
    first = rows[:: len(labels)]

    def column(name: str) -> np.ndarray:
        if name not in columns:
            return segmentation.iou_of(column("dice"))
        return np.array([float(row[name]) for row in rows]).reshape(-1, len(labels))

    try:
        return Cases(
            labels,
            np.array([row["image"] for row in first]),
            np.array([row["group"] for row in first]),
            np.array([row["split"] for row in first]),
            {name: column(name) for name in segmentation.MEASURES},
            column("truth_size"),
            column("predicted_size"),
            rows[0]["unit"],
        )
    except ValueError as error:
        raise UserError(f"'{path}' is not a table of segmentations: {error}") from error


def entry(values: np.ndarray, patients: np.ndarray, interval: bool, share: bool = False) -> dict[str, Any]:
    """`{value, low, high, cases}`: the mean over cases with a defined measure, and its interval over patients.

    share: whether the measure is between 0 and 1.
    """
    finite = np.isfinite(values)
    out: dict[str, Any] = {"value": None, "cases": int(finite.sum())}
    if finite.any():
        out["value"] = float(values[finite].mean())
    if finite.any() and interval:
        low, high = statistics.of_mean(values[finite], patients[finite], share)
        low = max(low, 0.0)  # NaN stays; no measure is negative
        for name, end in (("low", low), ("high", high)):
            out[name] = float(end) if np.isfinite(end) else None
    return out


def summarise(table: Cases) -> dict[str, Any]:
    """Measures of every split, over labels and for each label, with intervals for the judged split."""
    splits = {str(name): table.where(table.split == name) for name in dict.fromkeys(table.split)}
    judged = "test" if "test" in splits else "val" if "val" in splits else next(iter(splits))
    shares = segmentation.HIGHER_IS_BETTER  # these measures are between 0 and 1
    out: dict[str, Any] = {
        "labels": table.labels,
        "unit": table.unit,
        "judged_on": judged,
        "intervals": statistics.MEANING,
        "splits": {},
    }
    for name, cases in splits.items():
        patients, shown = cases.patients, name == judged
        out["splits"][name] = {
            "images": len(cases),
            "patients": len(set(patients)),
            "patients_known": bool((cases.groups != "").any()),
            "missed": dict(zip(table.labels, cases.missed.tolist(), strict=True)),
            "false_alarms": dict(zip(table.labels, cases.false_alarms.tolist(), strict=True)),
            "per_image": {m: entry(cases.mean_of_labels(m), patients, shown, shares[m]) for m in cases.values},
            "per_label": {
                label: {m: entry(v[:, j], patients, shown, shares[m]) for m, v in cases.values.items()}
                for j, label in enumerate(table.labels)
            },
        }
    return out


def concatenate(tables: list[Cases]) -> Cases:
    """Concatenate several tables with the same labels."""
    first = tables[0]
    join = lambda field: np.concatenate([getattr(table, field) for table in tables])
    return dataclasses.replace(
        first,
        names=join("names"),
        groups=join("groups"),
        split=join("split"),
        values={m: np.concatenate([table.values[m] for table in tables]) for m in first.values},
        truth_size=join("truth_size"),
        predicted_size=join("predicted_size"),
    )
