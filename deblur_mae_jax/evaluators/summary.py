"""Every number of a classification report, from the table of predictions and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np

from deblur_mae_jax.evaluators import classification, statistics
from deblur_mae_jax.evaluators.predictions import Predictions

# Their intervals are on the page; the bootstrap of all measures would take minutes.
WITH_INTERVAL = ("accuracy", "balanced_accuracy", "f1_binary", "f1_macro", "auroc",
                 "average_precision", "sensitivity_at_specificity")  # fmt: skip


def one(p: Predictions, resamples: int, seed: int = 0) -> dict[str, dict[str, Any]]:
    """`{measure: {value, low, high}}`; null where not defined."""
    out: dict[str, dict[str, Any]] = {}
    for name, value in classification.measure(p.labels, p.probabilities).items():
        out[name] = {"value": _plain(value)}
        if name in WITH_INTERVAL and resamples:
            interval = statistics.over_patients(p, classification.METRICS[name], resamples, seed)
            out[name] |= {"low": _plain(interval.low), "high": _plain(interval.high)}
    return out


def summarise(p: Predictions, resamples: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Measures of every split per image and per patient, and after temperature scaling.

    The temperature is fitted on the validation images; intervals (95 %, BCa over patients) are of the
    test split, or of the validation split where no test split exists.
    """
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
        "intervals": f"95 %, bootstrap over patients (BCa; percentile where it is not defined), {resamples} "
        "resamples",
        "splits": {},
    }
    for name, part in splits.items():
        draws = resamples if name == judged else 0
        patients = part.by_patient
        entry: dict[str, Any] = {
            "images": len(part),
            "patients": len(patients),
            "patients_known": part.patients_known,
            "per_class": {c: int((part.labels == i).sum()) for i, c in enumerate(p.classes)},
            "per_image": one(part, draws, seed),
        }
        if len(patients) < len(part):
            entry["per_patient"] = one(patients, draws, seed)
        if temperature is not None and name == judged:
            scaled = classification.scale(part.probabilities, temperature)
            entry["after_temperature"] = {
                k: {"value": _plain(classification.METRICS[k](part.labels, scaled))}
                for k in ("ece", "brier", "log_loss")
            }
        out["splits"][name] = entry
    return out


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
