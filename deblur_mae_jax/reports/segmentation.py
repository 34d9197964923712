"""The report of a segmentation run: cases, measures, leakage, and one page that opens offline."""

from __future__ import annotations

import dataclasses
from typing import Any

from deblur_mae_jax.metrics import segmentation
from deblur_mae_jax.reports import cases, page, segmentation_figures
from deblur_mae_jax.reports.cases import Cases
from deblur_mae_jax.workdir import run_folder
from deblur_mae_jax.workdir.run_folder import Workdir

FIGURES = "overlays.png"
POLICY = {
    "skip": "a label that is absent from the truth is not counted; a missed label has Dice and surface Dice 0 and no "
    "distance",
    "count": "a label in only one of truth and prediction counts as Dice 0 and the image's diagonal, a label in "
    "neither as Dice 1 and distance 0",
}

_UNDEFINED = ", those where the label is in truth and prediction"


@dataclasses.dataclass
class Notes(page.Notes):
    """Content of the page other than the numbers.

    shown: images with the outlines of truth and prediction.
    leaks: the result of the leakage audit, `audit.Leaks`.
    n_train: number of training images.
    """

    shown: list[segmentation_figures.Shown]
    leaks: Any
    n_train: int


def write(workdir: Workdir, table: Cases, notes: Notes) -> dict[str, Any]:
    """Write `predictions.csv`, `metrics.json`, `leakage.csv` and `report/index.html`.

    The numbers are computed from the written file, so that anyone can reproduce them from it. Returns the numbers.
    """
    table.write(workdir.predictions)
    table = cases.read(workdir.predictions)
    config = notes.config
    numbers = cases.summarise(table)
    numbers |= {
        "best_step": notes.best_step,
        "n_train": notes.n_train,
        "tolerance": config["report.tolerance"],
        "empty": config["report.empty"],
        "leakage": notes.leaks.lines(),
        "doubts": doubts(notes),
    }
    notes.leaks.write(workdir.leakage)
    run_folder.write_json(workdir.measures, numbers)
    _page(workdir, table, numbers, notes)
    return numbers


def verdict(numbers: dict[str, Any]) -> str:
    """The mean Dice and the number of missed structures, a doubt if there is one, and leaks."""
    return " ".join([_dice(numbers), *numbers["doubts"], *page.leakage(numbers["leakage"])])


def doubts(notes: Notes) -> list[str]:
    """A line that says that the network has not learned, and what to try; [] if it has."""
    metric = notes.config["select.metric"]
    found = page.never_improved(notes.curves, metric, segmentation.HIGHER_IS_BETTER[metric])
    return [
        f"{line} Try more epochs (--config.optim.epochs), or another learning rate (--config.optim.base_lr)."
        for line in found
    ]


def _dice(numbers: dict[str, Any]) -> str:
    judged = numbers["splits"][numbers["judged_on"]]
    dice, labels = judged["per_image"]["dice"], len(numbers["labels"])
    counted, total = dice["cases"], judged["images"]
    images = f"{total} {numbers['judged_on']} images {page.of_patients(judged)}"
    if counted < total:
        images = f"{counted} of {images}, the others of which have no label"
    text = f"Dice {page.cell(dice)} on {images}" + (f", the mean over {labels} labels." if labels > 1 else ".")
    missed, invented = (sum(judged[name].values()) for name in ("missed", "false_alarms"))
    text += f" {_structures(missed)} missed entirely." if missed else ""
    return text + (f" {_structures(invented)} predicted where there is none." if invented else "")


def _structures(number: int) -> str:
    return "1 structure was" if number == 1 else f"{number} structures were"


def measures(numbers: dict[str, Any]) -> str:
    """The table of measures: one row per measure, one column for the mean of the labels and one per label."""
    judged = numbers["splits"][numbers["judged_on"]]
    columns = {"mean of labels": judged["per_image"], **judged["per_label"]}
    if len(numbers["labels"]) == 1:
        del columns["mean of labels"]
    rows = []
    for name, meaning in segmentation.MEASURES.items():
        better = segmentation.HIGHER_IS_BETTER[name]
        what = meaning if better else f"{meaning}, {numbers['unit']} (lower is better)"
        if name == "surface_dice":
            what += f" at {numbers['tolerance']:g} {numbers['unit']}"
        rows.append((what, [page.cell(entries[name]) for entries in columns.values()]))
    where = _UNDEFINED if numbers["empty"] == "skip" else ""
    found = [("cases that Dice counts", "dice"), (f"cases that distances count{where}", "hd95")]
    counts = [(what, [str(entries[name]["cases"]) for entries in columns.values()]) for what, name in found]
    return page.grid(list(columns), [*rows, *counts])


def worst(table: Cases, count: int = 8) -> str:
    """The cases with the smallest Dice."""
    dice, distance = table.mean_of_labels("dice"), table.mean_of_labels("hd95")
    order = [int(i) for i in dice.argsort() if dice[i] == dice[i]][:count]
    shown = lambda value: f"{value:.2f}" if value == value else "-"  # a missed structure has no distance
    rows = [(str(table.names[i]), [f"{dice[i]:.3f}", shown(distance[i])]) for i in order]
    return page.grid(["Dice", f"HD95, {table.unit}"], rows)


def _page(workdir: Workdir, table: Cases, numbers: dict[str, Any], notes: Notes) -> None:
    config, judged_on = notes.config, numbers["judged_on"]
    judged = table.where(table.split == judged_on)
    drawn = {
        "figures.png": segmentation_figures.box_plots(judged),
        "curves.png": segmentation_figures.curves(notes.curves, notes.best_step, config["select.metric"]),
    }
    if notes.shown:
        drawn[FIGURES] = segmentation_figures.overlays(notes.shown)
    folder = workdir.make_report()
    images = page.figures(folder, drawn)
    warnings = numbers["doubts"] + page.no_test_split(judged_on) + page.leakage(numbers["leakage"])
    missed, invented = (numbers["splits"][judged_on][name] for name in ("missed", "false_alarms"))
    facts = {
        "labels": ", ".join(table.labels),
        **page.common_facts(notes, numbers),
        **page.time_spent(workdir),
        "windows": f"overlap {config['infer.overlap']:g}, {config['infer.blending']} blending"
        + (", averaged over flips" if config["infer.flips"] else ""),
        "empty masks": POLICY[config["report.empty"]],
        "missed": ", ".join(f"{k}: {v}" for k, v in missed.items()),
        "false alarms": ", ".join(f"{k}: {v}" for k, v in invented.items()),
    }
    page.judged(folder, notes, _dice(numbers), warnings, facts, {
        "Measures": measures(numbers),
        "Per label": page.embedded(images["figures.png"], "box plots of every measure per label"),
        "Cases": page.embedded(images[FIGURES], "overlays") if notes.shown else "",
        "Worst cases": worst(judged),
        "Training": page.embedded(images["curves.png"], "loss, learning rate, validation"),
        "Label maps": "<p>In <code>segmentations/</code>, one file per image.</p>",
        "Leakage": page.audited(notes.leaks, numbers["splits"][judged_on]["patients_known"], config),
    })  # fmt: skip
