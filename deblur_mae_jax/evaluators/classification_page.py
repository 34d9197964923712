"""The page of a classification run: one file that opens offline."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax import workdir
from deblur_mae_jax.evaluators import classification, classification_figures, report
from deblur_mae_jax.evaluators.predictions import Predictions

LOWER = tuple(k for k, higher in classification.HIGHER_IS_BETTER.items() if not higher)


def write_progress(
    folder: Path, title: str, latest: dict[str, float], lines: list[dict[str, Any]]
) -> Path:
    """The page of a run that is not finished: validation measures and curves."""
    curves = report.png(classification_figures.curves(lines))
    parts = [
        report.head(title),
        "<p>Not finished: the test images have not been looked at.</p>",
        report.table_of({k: f"{v:.4f}" for k, v in latest.items()}),
        report.embedded(curves, "curves"),
        "</html>",
    ]
    path = folder / "index.html"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def cell(entry: dict[str, Any]) -> str:
    """`0.812 (0.771 to 0.850)`, or a dash."""
    if entry.get("value") is None:
        return "-"
    text = f"{entry['value']:.3f}"
    if entry.get("low") is not None:
        text += f" ({entry['low']:.3f} to {entry['high']:.3f})"
    return text


def measures(numbers: dict[str, Any]) -> str:
    """The table of measures, per image and per patient."""
    judged = numbers["splits"][numbers["judged_on"]]
    columns = {"per image": judged["per_image"]}
    if "per_patient" in judged:
        columns["per patient"] = judged["per_patient"]
    if "after_temperature" in judged:
        columns["after temperature scaling"] = judged["after_temperature"]
    rows = []
    for name, meaning in classification.MEANING.items():
        if name not in judged["per_image"]:
            continue
        cells = "".join(
            f"<td class=n>{cell(entries[name]) if name in entries else ''}</td>"
            for entries in columns.values()
        )
        better = " (lower is better)" if name in LOWER else ""
        rows.append(f"<tr><th>{html.escape(meaning + better)}</th>{cells}</tr>")
    head = "".join(f"<th>{name}</th>" for name in columns)
    return f"<table><thead><tr><th></th>{head}</tr></thead>{''.join(rows)}</table>"


def counts(numbers: dict[str, Any], train_counts: np.ndarray) -> str:
    """Images by class and split."""
    classes, splits = numbers["classes"], numbers["splits"]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in ("training", *splits))
    rows = []
    for i, name in enumerate(classes):
        cells = "".join(f"<td class=n>{s['per_class'][name]}</td>" for s in splits.values())
        rows.append(
            f"<tr><th>{html.escape(name)}</th><td class=n>{train_counts[i]}</td>{cells}</tr>"
        )
    total = "".join(f"<td class=n>{s['images']} ({s['patients']})</td>" for s in splits.values())
    rows.append(f"<tr><th>images (patients)</th><td class=n>{train_counts.sum()}</td>{total}</tr>")
    return f"<table><thead><tr><th></th>{head}</tr></thead>{''.join(rows)}</table>"


def of_patients(judged: dict[str, Any]) -> str:
    """Whose images they are, in words."""
    if judged["patients_known"]:
        return f"of {judged['patients']} patients"
    return "(patients unknown: every image counts as one)"


def verdict(numbers: dict[str, Any]) -> str:
    """One sentence: is it better than guessing, and does the interval say so?"""
    judged = numbers["splits"][numbers["judged_on"]]
    entry = judged["per_image"]["balanced_accuracy"]
    present = sum(n > 0 for n in judged["per_class"].values())
    chance = 1 / present if present else float("nan")
    if entry.get("low") is None:
        return (
            f"Balanced accuracy {entry['value']:.3f} on {judged['images']} {numbers['judged_on']} images "
            f"{of_patients(judged)}; no interval (too few patients, or no resample differs)."
        )
    said = (
        "above" if entry["low"] > chance else "below" if entry["high"] < chance else "not told from"
    )
    return (
        f"Balanced accuracy {cell(entry)} is {said} guessing ({chance:.3f}) on {judged['images']} "
        f"{numbers['judged_on']} images {of_patients(judged)}."
    )


def write(
    folder: Path, *, table: Predictions, numbers: dict[str, Any], leaks: Any, notes: Any
) -> Path:
    """`index.html` with everything inside it, and the figures beside it.

    notes: `classification_report.Notes`.
    """
    config = notes.config
    judged_name = numbers["judged_on"]
    judged = table.where(table.split == judged_name)
    figures = {
        "figures.png": classification_figures.judgement(judged, numbers["temperature"]),
        "features.png": classification_figures.embedding_and_blur(judged, notes.features),
    }
    if notes.curves:
        figures["curves.png"] = classification_figures.curves(notes.curves, numbers["best_step"])
    pictures = {name: report.png(figure) for name, figure in figures.items()}
    for name, data in pictures.items():
        (folder / name).write_bytes(data)

    warnings = []
    if notes.setting == "oracle":
        warnings.append(
            "The blur of each judged image was chosen with its label: an upper bound, not a result."
        )
    if judged_name != "test":
        warnings.append(
            "There is no test split: the numbers are of the validation images, on which the weights "
            "were also chosen, and are therefore too good."
        )
    warnings += [f"Leakage: {line}." for line in leaks.lines()]
    warnings += [line for line in notes.lines if "no image of class" in line]
    box = "".join(f"<p>{html.escape(line)}</p>" for line in warnings)
    facts = {
        "task": f"{len(table.classes)} classes: {', '.join(table.classes)}",
        "judged on": f"{len(judged)} {judged_name} images "
        + of_patients(numbers["splits"][judged_name]),
        "weights": "frozen encoder"
        if numbers["best_step"] is None
        else f"step {numbers['best_step']}, the best {config['select.metric']} on validation",
        "start": config.get("init_from") or "from scratch",
        "degradation": config["task.degrade"],
        "blur setting": numbers["setting"] or "none",
        "intervals": numbers["intervals"],
    }
    looked = "with leakage found" if leaks.any else "none found"
    checked = "identical pixels"
    checked += ", patients in two splits" if judged.patients_known else " (patients are not known)"
    checked += ", perceptual hashes" if leaks.near_checked else ""
    checked += (
        ", images of pre-training"
        if leaks.pretraining_known
        else "; the images of pre-training are not known"
        if config.get("init_from")
        else ""
    )
    parts = [
        report.head(notes.title),
        f"<p><b>{html.escape(verdict(numbers))}</b></p>",
        f"<div class=warn>{box}</div>" if box else "",
        report.table_of(facts),
        "<h2>Measures</h2>",
        measures(numbers),
        "<h2>Images</h2>",
        counts(numbers, notes.train_counts),
        f"<p>{notes.skipped} files were not used: see <code>skipped.csv</code>.</p>"
        if notes.skipped
        else "",
        "<h2>Curves of the judgement</h2>",
        report.embedded(pictures["figures.png"], "ROC, precision-recall, confusion, reliability"),
        "<h2>Features</h2>",
        report.embedded(pictures["features.png"], "principal components, blur by class"),
    ]
    if notes.mistakes:
        parts += ["<h2>Most confident mistakes</h2>", _mistakes(notes.mistakes)]
    if notes.curves:
        alt = "loss, learning rate, validation measures"
        parts += ["<h2>Training</h2>", report.embedded(pictures["curves.png"], alt)]
    parts += [
        "<h2>Leakage</h2>",
        f"<p>Looked for: {html.escape(checked)}; {looked}. Pairs: <code>leakage.csv</code>.</p>",
        "<h2>How it was made</h2>",
        "".join(f"<p class=note>{html.escape(line)}</p>" for line in notes.lines),
        "<p class=note>Every number here follows from <code>predictions.csv</code>. For research; "
        "not a medical device.</p>",
        f"<details><summary>Config</summary>{report.table_of(config)}</details>",
        f"<details><summary>Environment</summary>{report.table_of(flat(workdir.environment()))}</details>",
        "</html>",
    ]
    path = folder / "index.html"
    path.write_text("\n".join(p for p in parts if p), encoding="utf-8")
    return path


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key} ")
        else:
            out[f"{prefix}{key}"] = value
    return out


def _mistakes(items: list[tuple[Predictions, np.ndarray, np.ndarray]]) -> str:
    pictures, labels = [], []
    for p, picture, attention in items:
        predicted = p.classes[int(p.probabilities[0].argmax())]
        labels.append(
            f"{p.classes[int(p.labels[0])]} as {predicted} ({p.probabilities[0].max():.2f})"
        )
        pair = np.concatenate(
            [
                np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2),
                classification_figures.overlay(picture, attention),
            ],
            axis=1,
        )
        pictures.append(pair)
    sheet = report.gallery(pictures, labels, columns=min(2, len(pictures)), tile=190)
    names = ", ".join(str(p.names[0]) for p, _, _ in items)
    return (
        report.embedded(report.png_of(sheet), "mistakes and attention")
        + "<p class=note>True class as predicted class (probability); beside each view, attention "
        f"rollout. From the left, row by row: {html.escape(names)}</p>"
    )
