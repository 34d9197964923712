"""What every classification run leaves: predictions, measures, leakage, and the page."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax import workdir
from deblur_mae_jax.data import audit
from deblur_mae_jax.data.index import Index
from deblur_mae_jax.evaluators import classification_page, predictions, summary
from deblur_mae_jax.evaluators.predictions import Predictions


@dataclasses.dataclass
class Notes:
    """What the page says beside the numbers. config: flat; curves: lines of `metrics.jsonl`."""

    title: str
    config: dict[str, Any]
    lines: list[str]
    setting: str | None
    best_step: int | None
    curves: list[dict[str, Any]]
    features: np.ndarray
    mistakes: list[Any]
    train_counts: np.ndarray
    skipped: int


def write(
    folder: Path,
    table: Predictions,
    index: Index,
    positions: dict[str, np.ndarray],
    notes: Notes,
) -> dict[str, Any]:
    """Write `predictions.csv`, `metrics.json`, `leakage.csv` and `report/index.html`.

    The numbers are computed from the file, not from memory, so that they follow from it. Returns them.
    """
    path = folder / "predictions.csv"
    table.write(path)
    table = predictions.read(path)
    resamples, seed = notes.config["report.bootstrap"], notes.config["seed"]
    numbers = summary.summarise(table, resamples, seed)
    numbers["n_train"] = int(notes.train_counts.sum())
    numbers |= {"best_step": notes.best_step, "setting": notes.setting}
    leaks = audit.compare(
        index,
        positions,
        pretrained=audit.known_hashes(folder),
        near=notes.config["report.audit"] == "near",
    )
    leaks.write(folder / "leakage.csv")
    numbers["leakage"] = leaks.lines()
    workdir.write_json(folder / "metrics.json", numbers)
    (folder / "report").mkdir(exist_ok=True)
    classification_page.write(
        folder / "report", table=table, numbers=numbers, leaks=leaks, notes=notes
    )
    return numbers
