"""The report of a classification run: predictions, measures, leakage, and one page that opens offline."""

from __future__ import annotations

import dataclasses
import html
from typing import Any

import numpy as np

from deblur_mae_jax.data import audit
from deblur_mae_jax.data.index import Index, known_hashes
from deblur_mae_jax.metrics import classification
from deblur_mae_jax.reports import classification_figures, page, predictions
from deblur_mae_jax.reports.predictions import Predictions
from deblur_mae_jax.workdir import run_folder
from deblur_mae_jax.workdir.run_folder import Workdir

LOWER = tuple(k for k, higher in classification.HIGHER_IS_BETTER.items() if not higher)
FIGURES = "figures.png"


@dataclasses.dataclass
class Notes(page.Notes):
    """Content of the page other than the numbers.

    setting: how the blur level of each image was found; None if the degradation has no levels.
    drawn: places of some judged images, `(N,)`; all of them unless there are many.
    features: their features, `(N, D)`.
    mistakes: (prediction, view, attention map) of each of the most confident mistakes.
    train_counts: number of training images of each class, `(C,)`.
    """

    setting: str | None
    drawn: np.ndarray
    features: np.ndarray
    mistakes: list[Any]
    train_counts: np.ndarray


def write(
    workdir: Workdir,
    table: Predictions,
    index: Index,
    indices: dict[str, np.ndarray],
    notes: Notes,
) -> dict[str, Any]:
    """Write `predictions.csv`, `metrics.json`, `leakage.csv` and `report/index.html`.

    The numbers are computed from the written file, so that anyone can reproduce them from it. Returns the numbers.

    indices: image numbers of each split in the index.
    """
    table.write(workdir.predictions)
    table = predictions.read(workdir.predictions)
    numbers = predictions.summarise(table)
    numbers["n_train"] = int(notes.train_counts.sum())
    numbers |= {"best_step": notes.best_step, "setting": notes.setting}
    judged = table.where(table.split == numbers["judged_on"])
    trains = notes.best_step is not None
    numbers["doubts"] = doubts(judged, notes.curves, notes.config["select.metric"]) if trains else []
    leaks = audit.compare(
        index,
        indices,
        pretrained=known_hashes(workdir.pretrained_images),
        near=notes.config["report.audit"] == "near",
    )
    leaks.write(workdir.leakage)
    numbers |= {"leakage": leaks.lines(), "contradictions": leaks.contradiction()}
    run_folder.write_json(workdir.measures, numbers)
    _page(workdir, table, numbers, leaks, notes)
    return numbers


def verdict(numbers: dict[str, Any]) -> str:
    """The balanced accuracy and its interval, compared with chance, a doubt if there is one, and leaks."""
    return " ".join(
        [_against_chance(numbers), *numbers["doubts"], *page.leakage(numbers["leakage"]), *numbers["contradictions"]]
    )


def _against_chance(numbers: dict[str, Any]) -> str:
    judged = numbers["splits"][numbers["judged_on"]]
    entry = judged["per_image"]["balanced_accuracy"]
    present = sum(n > 0 for n in judged["per_class"].values())
    known = len(judged["per_class"])
    chance, guess = (1 / present, 1 / known) if present else (float("nan"), float("nan"))
    images = f"on {judged['images']} {numbers['judged_on']} images {page.of_patients(judged)}"
    if present < 2:
        return f"Balanced accuracy {entry['value']:.3f} {images}, which have one class: there is no chance level."
    if entry.get("low") is None:
        why = (
            "there are too few patients, or every prediction is right, or every one is wrong, or all are the same class"
        )
        return f"Balanced accuracy {entry['value']:.3f} {images}; no interval: {why}."
    difference = (
        "is above chance"
        if entry["low"] > chance
        else "is below chance"
        if entry["high"] < guess
        else "does not differ significantly from chance"
    )
    level = f"{chance:.3f}" if present == known else f"{chance:.3f}; {guess:.3f} for a guess among all {known} classes"
    return f"Balanced accuracy {page.cell(entry)} {difference} ({level}) {images}."


# With 5 patients in the smaller of two classes, an interval of AUROC contained the truth in 91 to 93 % of simulations
# in place of 95 % (benchmarks/coverage.py).
FEW = 10
ADVICE = (
    "Try configs/finetune.py:small, which is for small networks and small sets; more epochs "
    "(--config.optim.epochs); or another learning rate (--config.optim.base_lr)"
)


def doubts(judged: Predictions, curves: list[dict[str, Any]], metric: str) -> list[str]:
    """Lines that say that the network has not learned to tell the classes apart, and what to try; [] if it has.

    judged: the predictions of the judged images.
    curves: lines of `metrics.jsonl`.
    metric: measure that selected the weights on the validation images.
    """
    predicted = judged.probabilities.argmax(axis=1)
    known = judged.labels >= 0
    if len(np.unique(judged.labels[known])) > 1 and len(np.unique(predicted)) == 1:
        always = judged.classes[int(predicted[0])]
        return [f"All {len(judged)} judged images are predicted as '{always}': it did not learn the classes. {ADVICE}."]
    found = page.never_improved(curves, metric, classification.HIGHER_IS_BETTER[metric])
    return [f"{line} {ADVICE}." for line in found]


def few_patients(judged: Predictions) -> list[str]:
    """A line if intervals are too narrow because a class has few patients; else []."""
    patients = {judged.classes[c]: len(set(judged.patients[judged.labels == c])) for c in np.unique(judged.labels)}
    few = {name: count for name, count in patients.items() if count < FEW}
    if len(patients) < 2 or not few:
        return []
    listed = ", ".join(f"{count} of '{name}'" for name, count in sorted(few.items(), key=lambda item: item[1]))
    return [
        f"Classes with fewer than {FEW} judged patients: {listed}. The intervals of their measures, of AUROC and of "
        "average precision are too narrow."
    ]


def measures(numbers: dict[str, Any]) -> str:
    """The table of measures, per image and per patient."""
    judged = numbers["splits"][numbers["judged_on"]]
    columns = {"per image": judged["per_image"]}
    if "per_patient" in judged:
        columns["per patient"] = judged["per_patient"]
    if "after_temperature" in judged:
        columns["after temperature scaling"] = judged["after_temperature"]
    rows = [
        (
            meaning + (" (lower is better)" if name in LOWER else ""),
            [page.cell(entries[name]) if name in entries else "" for entries in columns.values()],
        )
        for name, meaning in classification.MEANING.items()
        if name in judged["per_image"]
    ]
    return page.grid(list(columns), rows)


def counts(numbers: dict[str, Any], train_counts: np.ndarray) -> str:
    """Images by class and split."""
    splits = numbers["splits"]
    rows = [
        (name, [str(train_counts[i]), *(str(s["per_class"][name]) for s in splits.values())])
        for i, name in enumerate(numbers["classes"])
    ]
    totals = [f"{s['images']} ({s['patients']})" for s in splits.values()]
    return page.grid(["training", *splits], [*rows, ("images (patients)", [str(train_counts.sum()), *totals])])


def _page(workdir: Workdir, table: Predictions, numbers: dict[str, Any], leaks: Any, notes: Notes) -> None:
    judged = table.where(table.split == numbers["judged_on"])
    drawn = {
        FIGURES: classification_figures.judgement(judged, numbers["temperature"]),
        "features.png": classification_figures.embedding_and_blur(judged, notes.drawn, notes.features),
    }
    if notes.curves:
        drawn["curves.png"] = classification_figures.curves(notes.curves, numbers["best_step"])
    folder = workdir.make_report()
    images = page.figures(folder, drawn)
    warnings = []
    if notes.setting == "oracle":
        warnings.append(
            "The blur level of each judged image was chosen with its label: the numbers are an upper bound."
        )
    warnings += numbers["doubts"] + few_patients(judged)
    warnings += page.no_test_split(numbers["judged_on"])
    warnings += page.leakage(numbers["leakage"]) + numbers["contradictions"]
    warnings += [line for line in notes.lines if "no image of class" in line]
    facts = {
        "task": f"{len(table.classes)} classes: {', '.join(table.classes)}",
        **page.common_facts(notes, numbers),
        **page.time_spent(workdir),
        "degradation": notes.config["task.degrade"],
        "blur setting": numbers["setting"] or "none",
    }
    shown = "loss, learning rate, validation measures"
    page.judged(folder, notes, _against_chance(numbers), warnings, facts, {
        "Measures": measures(numbers),
        "Images": counts(numbers, notes.train_counts),
        "Curves of the judgement": page.embedded(
            images[FIGURES], "ROC, precision-recall, confusion, reliability"
        ),
        "Features": page.embedded(images["features.png"], "principal components, blur by class"),
        "Most confident mistakes": _mistakes(notes.mistakes) if notes.mistakes else "",
        "Training": page.embedded(images["curves.png"], shown) if notes.curves else "",
        "Leakage": page.audited(leaks, judged.patients_known, notes.config),
    })  # fmt: skip


def _mistakes(items: list[tuple[Predictions, np.ndarray, np.ndarray | None]]) -> str:
    images, labels = [], []
    for p, view, attention in items:
        predicted = p.classes[int(p.probabilities[0].argmax())]
        labels.append(f"{p.classes[int(p.labels[0])]} as {predicted} ({p.probabilities[0].max():.2f})")
        shown = [np.repeat(view.mean(axis=2, keepdims=True), 3, axis=2)]
        if attention is not None:
            shown.append(classification_figures.overlay(view, attention))
        images.append(np.concatenate(shown, axis=1))
    sheet = page.gallery(images, labels, columns=min(2, len(images)), tile=190)
    names = ", ".join(str(p.names[0]) for p, _, _ in items)
    return (
        page.embedded(page.png_of(sheet), "mistakes and attention")
        + "<p class=note>Each label reads: true class as predicted class (probability). To the right of each view is "
        f"its attention rollout. From left to right, row by row: {html.escape(names)}</p>"
    )
