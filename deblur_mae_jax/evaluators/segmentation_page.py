"""The page of a segmentation run: one file that opens offline."""

from __future__ import annotations

import dataclasses
import html
from pathlib import Path
from typing import Any

from deblur_mae_jax import workdir
from deblur_mae_jax.evaluators import report, segmentation, segmentation_figures
from deblur_mae_jax.evaluators.cases import Cases
from deblur_mae_jax.evaluators.classification_page import cell, flat, of_patients


@dataclasses.dataclass
class Notes:
    """What the page says beside the numbers. config: flat; curves: lines of `metrics.jsonl`; leaks: `audit.Leaks`."""

    title: str
    config: dict[str, Any]
    lines: list[str]
    best_step: int
    curves: list[dict[str, Any]]
    shown: list[segmentation_figures.Shown]
    leaks: Any
    n_train: int
    skipped: int


def verdict(numbers: dict[str, Any]) -> str:
    """One sentence."""
    judged = numbers["splits"][numbers["judged_on"]]
    text = (
        f"Dice {cell(judged['per_image']['dice'])} on {judged['images']} {numbers['judged_on']} images "
        f"{of_patients(judged)}, the mean over {len(numbers['labels'])} label(s)"
    )
    missed = sum(judged["missed"].values())
    return text + (f"; {missed} structure(s) were missed altogether." if missed else ".")


def measures(numbers: dict[str, Any]) -> str:
    """The table: a row per measure, a column for the mean of the labels and for each of them."""
    judged = numbers["splits"][numbers["judged_on"]]
    columns = {"mean of labels": judged["per_image"], **judged["per_label"]}
    if len(numbers["labels"]) == 1:
        del columns["mean of labels"]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    rows = []
    for name, meaning in segmentation.MEASURES.items():
        better = segmentation.HIGHER_IS_BETTER[name]
        what = meaning if better else f"{meaning}, {numbers['unit']} (lower is better)"
        if name == "surface_dice":
            what += f" at {numbers['tolerance']:g} {numbers['unit']}"
        cells = "".join(f"<td class=n>{cell(entries[name])}</td>" for entries in columns.values())
        rows.append(f"<tr><th>{html.escape(what)}</th>{cells}</tr>")
    counted = "".join(f"<td class=n>{e['dice']['cases']}</td>" for e in columns.values())
    rows.append(f"<tr><th>cases with it</th>{counted}</tr>")
    return f"<table><thead><tr><th></th>{head}</tr></thead>{''.join(rows)}</table>"


def worst(table: Cases, count: int = 8) -> str:
    """The cases with the smallest Dice."""
    dice = table.mean_of_labels("dice")
    order = [int(i) for i in dice.argsort() if dice[i] == dice[i]][:count]
    rows = "".join(
        f"<tr><th>{html.escape(str(table.names[i]))}</th><td class=n>{dice[i]:.3f}</td>"
        f"<td class=n>{table.mean_of_labels('hd95')[i]:.2f}</td></tr>"
        for i in order
    )
    head = f"<thead><tr><th>case</th><th>Dice</th><th>HD95, {table.unit}</th></tr></thead>"
    return f"<table>{head}{rows}</table>"


def write_progress(
    folder: Path, title: str, latest: dict[str, float], lines: list[dict[str, Any]], metric: str
) -> Path:
    """The page of a run that is not finished."""
    parts = [
        report.head(title),
        "<p>Not finished: the test images have not been looked at.</p>",
        report.table_of({k: f"{v:.4f}" for k, v in latest.items()}),
        report.embedded(report.png(segmentation_figures.curves(lines, None, metric)), "curves"),
        "</html>",
    ]
    path = folder / "index.html"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def write(folder: Path, table: Cases, numbers: dict[str, Any], notes: Notes) -> Path:
    """`index.html` with everything inside it, and the figures beside it."""
    config, name = notes.config, numbers["judged_on"]
    judged = table.where(table.split == name)
    figures = {
        "figures.png": segmentation_figures.box_plots(judged),
        "curves.png": segmentation_figures.curves(
            notes.curves, notes.best_step, config["select.metric"]
        ),
    }
    if notes.shown:
        figures["overlays.png"] = segmentation_figures.overlays(notes.shown)
    pictures = {key: report.png(figure) for key, figure in figures.items()}
    for key, data in pictures.items():
        (folder / key).write_bytes(data)
    warnings = []
    if name != "test":
        warnings.append(
            "There is no test split: the numbers are of the validation images, on which the weights "
            "were also chosen, and are therefore too good."
        )
    warnings += [f"Leakage: {line}." for line in notes.leaks.lines()]
    box = "".join(f"<p>{html.escape(line)}</p>" for line in warnings)
    split = numbers["splits"][name]
    policy = {
        "skip": "a label that the truth of a case lacks is not counted; a missed one has Dice 0 and no distance",
        "count": "a label that only one of the two has counts as Dice 0 and the image's diagonal, one that neither "
        "has as Dice 1 and distance 0",
    }
    facts = {
        "labels": ", ".join(table.labels),
        "judged on": f"{len(judged)} {name} images {of_patients(split)}",
        "trained on": f"{notes.n_train} images",
        "weights": f"step {notes.best_step}, the best {config['select.metric']} on validation",
        "start": config.get("init_from") or "from scratch",
        "windows": f"overlap {config['infer.overlap']:g}, {config['infer.blending']} blending"
        + (", averaged over flips" if config["infer.flips"] else ""),
        "empty masks": policy[config["report.empty"]],
        "missed": ", ".join(f"{k}: {v}" for k, v in split["missed"].items()),
        "intervals": numbers["intervals"],
    }
    parts = [
        report.head(notes.title),
        f"<p><b>{html.escape(verdict(numbers))}</b></p>",
        f"<div class=warn>{box}</div>" if box else "",
        report.table_of(facts),
        "<h2>Measures</h2>",
        measures(numbers),
        f"<p>{notes.skipped} files were not used: see <code>skipped.csv</code>.</p>"
        if notes.skipped
        else "",
        "<h2>Per label</h2>",
        report.embedded(pictures["figures.png"], "box plots of every measure per label"),
        "<h2>Cases</h2>",
        report.embedded(pictures["overlays.png"], "overlays") if notes.shown else "",
        "<h2>Worst cases</h2>",
        worst(judged),
        "<h2>Training</h2>",
        report.embedded(pictures["curves.png"], "loss, learning rate, validation"),
        "<h2>How it was made</h2>",
        "".join(f"<p class=note>{html.escape(line)}</p>" for line in notes.lines),
        "<p class=note>Every number here follows from <code>predictions.csv</code>; the label maps are in "
        "<code>segmentations/</code>. For research; not a medical device.</p>",
        f"<details><summary>Config</summary>{report.table_of(config)}</details>",
        f"<details><summary>Environment</summary>{report.table_of(flat(workdir.environment()))}</details>",
        "</html>",
    ]
    path = folder / "index.html"
    path.write_text("\n".join(p for p in parts if p), encoding="utf-8")
    return path
