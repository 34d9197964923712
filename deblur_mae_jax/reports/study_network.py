"""A trained network in a study: the test cases that it judged, and their measures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np

from deblur_mae_jax.metrics import weighted
from deblur_mae_jax.reports import cases, predictions
from deblur_mae_jax.workdir.run_folder import Workdir

OF_CLASSES = ("accuracy", "f1_binary", "f1_macro", "auroc")
OF_MASKS = ("dice", "hd95", "surface_distance")
MISSED = "missed"  # number of labels of a case that were not found: distances leave them out


@dataclasses.dataclass
class Network:
    """The test cases of one trained network.

    training: number of the pre-training (its seed), or "" where there is none.
    images, groups: name and patient of every case, `(N,)`.
    columns: for a classifier `label` and `p_CLASS`; for a segmenter its measures, each `(N,)`.
    unit: of a segmenter's distances, "mm" or "px"; "" if it is not known.
    """

    method: str
    training: str
    seed: int
    fold: int
    images: np.ndarray
    groups: np.ndarray
    columns: dict[str, np.ndarray]
    unit: str = ""

    @property
    def patients(self) -> np.ndarray:
        """The group of every case; a case without a group uses its name."""
        return np.where(self.groups == "", self.images, self.groups)

    @property
    def measures(self) -> tuple[str, ...]:
        """The measures that these cases have."""
        if "label" not in self.columns:
            return OF_MASKS
        return tuple(m for m in OF_CLASSES if m != "f1_binary" or len(self._probabilities) == 2)

    @property
    def classes(self) -> list[str]:
        """The classes of a classifier in order, the positive one of two last."""
        return [name.removeprefix("p_") for name in self.columns if name.startswith("p_")]

    def text(self, name: str, case: int) -> str:
        """A column of a case as it is kept: the name of the class, or a number."""
        if name not in self.columns:
            return ""
        value = self.columns[name][case]
        return self.classes[int(value)] if name == "label" else f"{value:.9g}"

    @property
    def _probabilities(self) -> list[np.ndarray]:
        return [values for name, values in self.columns.items() if name.startswith("p_")]

    def counted(self, name: str) -> np.ndarray | None:
        """Whether a case has a value of this measure `(N,)`; `None` if all have."""
        return None if "label" in self.columns else np.isfinite(self.columns[name])

    def measure(self, name: str, weights: np.ndarray) -> np.ndarray:
        """A measure `(B,)` of the cases with weights `(B, N)`."""
        if "label" in self.columns:
            labels, p = self.columns["label"].astype(int), np.stack(self._probabilities, axis=1)
            return weighted.MEASURES[name](labels, p, weights)
        values = self.columns[name]
        found = np.isfinite(values)
        with np.errstate(invalid="ignore"):  # no case with a value: NaN
            return weights[:, found] @ values[found] / weights[:, found].sum(axis=1)


def read_network(folder: Path, method: str, training: str, seed: int, fold: int) -> Network:
    """The judged cases of a finished run."""
    workdir = Workdir(folder)
    judged_on = json.loads(workdir.measures.read_text())
    if "labels" in judged_on:
        table = cases.read(workdir.predictions)
        table = table.where(table.split == judged_on["judged_on"])
        columns = {name: table.mean_of_labels(name) for name in OF_MASKS}
        columns[MISSED] = table.missed_labels.astype(float)
        return Network(method, training, seed, fold, table.names, table.groups, columns, table.unit)
    rows = predictions.read(workdir.predictions)
    rows = rows.where(rows.split == judged_on["judged_on"])
    predictions.require_labels(rows, workdir.predictions)
    columns = {"label": rows.labels.astype(float)}
    columns |= {f"p_{name}": rows.probabilities[:, i] for i, name in enumerate(rows.classes)}
    return Network(method, training, seed, fold, rows.names, rows.groups, columns)
