"""Table of the predictions of a classifier, and the numbers of a report, all computed from this table."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.metrics import classification, statistics, weighted

_COLUMNS = ("image", "group", "split", "label", "level", "sigma")


@dataclasses.dataclass
class Predictions:
    """One row per image.

    names, split: image name and split, `(N,)`.
    groups: patients, `(N,)`; "" if unknown.
    labels: class numbers, `(N,)`; -1 if unknown.
    probabilities: probabilities before any calibration, `(N, C)`.
    level, sigma: blur level and its sigma, `(N,)`; 0 and NaN without blur.
    """

    classes: list[str]
    names: np.ndarray
    groups: np.ndarray
    split: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    level: np.ndarray
    sigma: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def where(self, rows: np.ndarray) -> Predictions:
        """The rows that a mask or a list of numbers selects."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return Predictions(**{k: v if k == "classes" else v[rows] for k, v in values.items()})

    @property
    def of_split(self) -> dict[str, Predictions]:
        """One table per split."""
        return {str(name): self.where(self.split == name) for name in dict.fromkeys(self.split)}

    @property
    def patients_known(self) -> bool:
        """Whether the patient of the images is known."""
        return bool((self.groups != "").any())

    @property
    def patients(self) -> np.ndarray:
        """The group of every image; an image without a group uses its name."""
        return np.where(self.groups == "", self.names, self.groups)

    @property
    def by_patient(self) -> Predictions:
        """One row per patient: the mean of the probabilities of its images.

        A patient whose images have different labels (two lesions) has one row for each label.
        """
        keys = [f"{p}\0{n}" for p, n in zip(self.patients, self.labels, strict=True)]
        unique, first, which = np.unique(keys, return_index=True, return_inverse=True)
        counts = np.bincount(which)

        def mean(values):
            sums = np.zeros((len(unique), *values.shape[1:]))
            np.add.at(sums, which, values)
            return sums / counts.reshape(-1, *[1] * (values.ndim - 1))

        first_rows = self.where(first)
        return dataclasses.replace(
            first_rows,
            names=first_rows.patients,
            probabilities=mean(self.probabilities),
            sigma=mean(self.sigma),
        )

    def write(self, path: Path) -> None:
        """Write a CSV with the columns image, group, split, label, predicted, one per class, level and sigma."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            columns = [f"p_{name}" for name in self.classes]
            out.writerow(["image", "group", "split", "label", "predicted", *columns, "level", "sigma"])
            for i in range(len(self)):
                label = self.classes[self.labels[i]] if self.labels[i] >= 0 else ""
                predicted = self.classes[int(self.probabilities[i].argmax())]
                row = [repr(float(p)) for p in self.probabilities[i]]  # exactly what was predicted
                sigma = "" if np.isnan(self.sigma[i]) else f"{self.sigma[i]:g}"
                out.writerow(
                    [self.names[i], self.groups[i], self.split[i], label, predicted, *row,
                     self.level[i], sigma]
                )  # fmt: skip


def read(path: Path) -> Predictions:
    """Read a table written by `write`. Raises `UserError` for any other file."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read '{path}': {error}") from error
    classes = [name[2:] for name in columns if name.startswith("p_")]
    lacking = [name for name in _COLUMNS if name not in columns]
    if not classes or lacking or not rows:
        said = f"it lacks {', '.join(lacking)}" if lacking and rows else f"its columns are {columns}"
        raise UserError(f"'{path}' is not a table of predictions: {said if rows else 'it has no rows'}")
    try:
        table = Predictions(
            classes,
            np.array([r["image"] for r in rows]),
            np.array([r["group"] for r in rows]),
            np.array([r["split"] for r in rows]),
            np.array([classes.index(r["label"]) if r["label"] in classes else -1 for r in rows]),
            np.array([[float(r[f"p_{c}"]) for c in classes] for r in rows]),
            np.array([int(r["level"]) for r in rows]),
            np.array([float(r["sigma"] or "nan") for r in rows]),
        )
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"'{path}' is not a table of predictions: {error}") from error
    _check_rows(path, table, [r["label"] for r in rows])
    return table


def _check_rows(path: Path, table: Predictions, labels: list[str]) -> None:
    """Raise `UserError` that names the first row whose values cannot be judged."""
    p = table.probabilities
    wrong = ~np.isfinite(p).all(axis=1) | (p < 0).any(axis=1) | (np.abs(p.sum(axis=1) - 1) > 1e-2)
    seen: set[tuple[str, str]] = set()
    for i, (image, split, label) in enumerate(zip(table.names, table.split, labels, strict=True)):
        place = f"'{path}', row {i + 2}, image '{image}'"
        if wrong[i]:
            raise UserError(f"{place}: {p[i].tolist()} are no probabilities, which are 0 to 1 and add up to 1")
        if label and label not in table.classes:
            raise UserError(f"{place}: the label '{label}' is none of {', '.join(table.classes)}")
        if (image, split) in seen:
            raise UserError(f"{place} occurs twice in the split '{split}'")
        seen.add((image, split))


def of_index(
    index: Any,
    supervision: Any,
    split: str,
    probabilities: np.ndarray,
    levels: np.ndarray | None,
    sigmas: np.ndarray,
) -> Predictions:
    """The images of a split of an index, in order.

    supervision: classes, labels and indices of the run (`training/supervision.py`).
    levels: blur levels of all images of the index, or of this split.
    sigmas: sigma of levels 1, 2, ...; empty if the degradation has none.
    """
    indices, source = supervision.indices[split], index.source
    groups = source.groups or [""] * len(source)
    level = np.zeros(len(indices), int)
    sigma = np.full(len(indices), np.nan)
    if levels is not None and len(sigmas):
        level = (levels if len(levels) == len(indices) else levels[indices]).astype(int)
        sigma = sigmas[level - 1]
    return Predictions(
        supervision.classes,
        np.array([source.names[i] for i in indices]),
        np.array([groups[i] for i in indices]),
        np.full(len(indices), split),
        supervision.labels[indices].astype(int),
        probabilities,
        level,
        sigma,
    )


def concatenate(tables: list[Predictions]) -> Predictions:
    """Concatenate several tables with the same classes."""
    names = [f.name for f in dataclasses.fields(Predictions) if f.name != "classes"]
    joined = {name: np.concatenate([getattr(table, name) for table in tables]) for name in names}
    return Predictions(classes=tables[0].classes, **joined)


def measured(p: Predictions, intervals: bool) -> dict[str, dict[str, Any]]:
    """Return `{measure: {value, low, high}}`, with null for undefined values."""
    out: dict[str, dict[str, Any]] = {}
    for name, value in classification.measure(p.labels, p.probabilities).items():
        out[name] = {"value": _plain(value)}
        if name in weighted.MEASURES and intervals:
            interval = statistics.over_patients(
                p.labels, p.probabilities, p.patients, weighted.MEASURES[name], weighted.KINDS[name]
            )
            out[name] |= {"low": _plain(interval.low), "high": _plain(interval.high)}
    return out


def require_labels(p: Predictions, path: Path | str = "predictions") -> None:
    """Raise `UserError` if the label of an image is not known, because no measure could count it."""
    lacking = p.names[p.labels < 0]
    if len(lacking):
        raise UserError(f"'{path}': {len(lacking)} of {len(p)} images have no label, for example '{lacking[0]}'")


def summarise(p: Predictions) -> dict[str, Any]:
    """Measures of every split per image and per patient, and after temperature scaling.

    The temperature is fitted on the validation images. Intervals (95 %, over patients) are for the
    test split, or for the validation split if no test split exists. Raises `UserError` for images without a label.
    """
    require_labels(p)
    splits = p.of_split
    judged = "test" if "test" in splits else "val" if "val" in splits else next(iter(splits))
    temperature = None
    if "val" in splits and judged != "val":
        val = splits["val"]
        temperature = classification.fit_temperature(val.labels, val.probabilities)
    out: dict[str, Any] = {
        "classes": p.classes,
        "judged_on": judged,
        "temperature": temperature,
        "intervals": statistics.MEANING,
        "splits": {},
    }
    for name, table_of_split in splits.items():
        patients = table_of_split.by_patient
        entry: dict[str, Any] = {
            "images": len(table_of_split),
            "patients": len(np.unique(table_of_split.patients)),
            "patients_known": table_of_split.patients_known,
            "per_class": {c: int((table_of_split.labels == i).sum()) for i, c in enumerate(p.classes)},
            "per_image": measured(table_of_split, name == judged),
        }
        if len(patients) < len(table_of_split):
            entry["per_patient"] = measured(patients, name == judged)
        if temperature is not None and name == judged:
            scaled = classification.scale(table_of_split.probabilities, temperature)
            entry["after_temperature"] = {
                k: {"value": _plain(classification.METRICS[k](table_of_split.labels, scaled))}
                for k in ("ece", "brier", "log_loss")
            }
        out["splits"][name] = entry
    return out


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
