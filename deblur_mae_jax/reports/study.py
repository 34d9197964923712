"""The table of a study: every method's mean over trainings, its interval, and its difference from a reference.

A study keeps two files, from which the table can be written again without the runs: `cases.csv.gz` with one row per
network and test case, and `study.json` with the methods and what the papers report.
"""

from __future__ import annotations

import csv
import functools
import gzip
import html
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.metrics import several_runs, statistics
from deblur_mae_jax.metrics.segmentation import LENGTHS  # in their own unit; all other measures are in percent
from deblur_mae_jax.metrics.several_runs import Judged
from deblur_mae_jax.reports import ensembles, page, study_figure
from deblur_mae_jax.reports.study_network import MISSED, OF_CLASSES, OF_MASKS, Network, read_network

__all__ = ["Network", "keep", "kept", "read_network", "rows", "write"]

CASES, FACTS, PICTURE = "cases.csv.gz", "study.json", "ranks.png"
_KEYS = ("method", "training", "seed", "fold", "image", "group")


def keep(networks: list[Network], facts: dict[str, Any], folder: Path) -> None:
    """Write the cases, with nine digits of every number, and the facts.

    Methods may have other classes, and the same ones in another order, so the facts keep the order of each.
    """
    facts = facts | {"classes": {n.method: n.classes for n in networks if n.classes}}
    facts |= {"units": {n.method: n.unit for n in networks if n.unit}}
    (folder / FACTS).write_text(json.dumps(facts, indent=1) + "\n")
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    names = list(dict.fromkeys(name for network in networks for name in network.columns))
    out.writerow([*_KEYS, *names])
    for n in networks:
        for i in range(len(n.images)):
            values = [n.text(name, i) for name in names]
            out.writerow([n.method, n.training, n.seed, n.fold, n.images[i], n.groups[i], *values])
    with open(folder / CASES, "wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as file:
        file.write(text.getvalue().encode())


def kept(folder: Path) -> tuple[list[Network], dict[str, Any]]:
    """Read what `keep` wrote. Raises `UserError` if the folder holds no study."""
    try:
        facts = json.loads((folder / FACTS).read_text())
        with gzip.open(folder / CASES, "rt", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise UserError(f"'{folder}' holds no study ({CASES} and {FACTS}): {error}") from error
    lacking = [name for name in ("title", "methods") if name not in facts]
    if lacking:
        raise UserError(f"'{folder / FACTS}' is not that of a study: it lacks {', '.join(lacking)}")
    lacking = [name for name in _KEYS if rows and name not in rows[0]]
    if lacking:
        raise UserError(f"'{folder / CASES}' is not that of a study: it lacks the column {', '.join(lacking)}")
    groups: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in _KEYS[:4]), []).append(row)
    networks = []
    for (method, training, seed, fold), own in groups.items():
        classes = facts.get("classes", {}).get(method, [])
        numbers = [name for name in own[0] if name not in (*_KEYS, "label") and own[0][name] != ""]
        if classes:
            numbers = [f"p_{name}" for name in classes]
        columns = {"label": np.array([float(classes.index(row["label"])) for row in own])} if classes else {}
        columns |= {name: np.array([float(row[name]) for row in own]) for name in numbers}
        image, group = (np.array([row[name] for row in own]) for name in _KEYS[4:])
        unit = facts.get("units", {}).get(method, "")
        networks.append(Network(method, training, int(seed), int(fold), image, group, columns, unit))
    return networks, facts


def _judged(networks: list[Network], measure: str) -> list[Judged]:
    """The networks of a method. Trainings are the pre-trainings if there are several, else the fine-tunings."""
    several = len({n.training for n in networks}) > 1
    return [
        Judged(
            n.training if several else n.seed,
            n.patients,
            functools.partial(n.measure, measure),
            n.counted(measure),
            n.images,
            n.seed if several else None,
        )
        for n in networks
    ]


def _complete(networks: list[Network]) -> list[Network]:
    """The networks of the trainings that were judged on every fold."""
    several = len({n.training for n in networks}) > 1
    folds: dict[Any, set[int]] = {}
    for n in networks:
        folds.setdefault(n.training if several else n.seed, set()).add(n.fold)
    every = set().union(*folds.values()) if folds else set()
    return [n for n in networks if folds[n.training if several else n.seed] == every]


def _undefined(networks: list[Network], measure: str) -> dict[str, tuple[int, int]]:
    """By measure, in how many cases, and of how many, it is not defined; empty if there are none."""
    values = [n.columns[measure] for n in networks if measure in n.columns]
    lacking = sum(int(np.isnan(value).sum()) for value in values)
    return {measure: (lacking, sum(len(value) for value in values))} if lacking else {}


def _missed(networks: list[Network]) -> dict[str, int]:
    """Over all segmenters, the labels that were not found, and the cases with one; and networks that kept no count.

    Empty if every network kept a count and found all labels.
    """
    segmenters = [n for n in networks if not n.classes]
    counts = [n.columns[MISSED] for n in segmenters if MISSED in n.columns]
    labels = int(sum(count.sum() for count in counts))
    out = {"missed": labels, "missed_cases": int(sum((count > 0).sum() for count in counts))} if labels else {}
    return out | ({"uncounted": len(segmenters) - len(counts)} if len(counts) < len(segmenters) else {})


def _uneven(networks: list[Network]) -> tuple[int, int] | None:
    """The smallest and the largest number of networks of a training on a fold; `None` if they are equal."""
    several = len({n.training for n in networks}) > 1
    counts: dict[tuple[Any, int], int] = {}
    for n in networks:
        key = (n.training if several else n.seed, n.fold)
        counts[key] = counts.get(key, 0) + 1
    sizes = set(counts.values())
    return (min(sizes), max(sizes)) if len(sizes) > 1 else None


def _shared(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two methods start from the same pre-trainings, of which there are several."""
    return min(row["pretrainings"], other["pretrainings"]) > 1 and "start" in row and row["start"] == other.get("start")


def _require_same_meaning(
    measure: str, row: dict[str, Any], other: dict[str, Any], of_method: dict[str, list[Network]]
) -> None:
    """Raise `ValueError` if a measure means something else in two rows."""
    if measure == "f1_binary":
        ours, theirs = (of_method[one["method"]][0].classes[-1] for one in (row, other))
        if ours != theirs:
            raise ValueError(f"its positive class is '{ours}', that of {other['method']} '{theirs}'")
    if measure in LENGTHS and row.get("unit") != other.get("unit"):
        raise ValueError(f"its distances are in {row['unit'] or '?'}, those of {other['method']} in another unit")


def rows(networks: list[Network], facts: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per method: its state, and per measure the mean, interval and difference from the reference.

    The p-values are adjusted by Holm's method over the methods that are compared with the reference. `left_out` counts
    the networks of trainings that lack a fold, `uneven` how many networks a fold of a training has where they differ;
    `not_judged` and `not_compared` say why a row has no measures or no
    difference.
    """
    every = {name: [n for n in networks if n.method == name] for name in facts["methods"]}
    of_method = {name: _complete(own) for name, own in every.items()}
    out = [
        {"method": name, "runs": len(of_method[name]), "left_out": len(every[name]) - len(of_method[name]),
         "pretrainings": len({n.training for n in of_method[name]} - {""}),
         **({"unit": of_method[name][0].unit} if of_method[name] and not of_method[name][0].classes else {}),
         "folds": len({n.fold for n in of_method[name]}), "uneven": _uneven(of_method[name]),
         **_missed(of_method[name]), **about}
        for name, about in facts["methods"].items()
    ]  # fmt: skip
    reference = facts.get("reference", "")
    for measure in (*OF_CLASSES, *OF_MASKS):
        by = 1.0 if measure in LENGTHS else 100.0
        tables = {}
        for row in out:
            own = of_method[row["method"]]
            try:
                if own and measure in own[0].measures:
                    tables[row["method"]] = several_runs.table(_judged(own, measure), row.get("fixed", False))
            except ValueError as error:
                row["not_judged"] = str(error)
            if row["method"] in tables:
                mean = several_runs.mean(tables[row["method"]], share=measure not in LENGTHS)
                low, high = mean.interval
                low = max(low, 0.0)  # NaN stays; no measure is negative
                row[measure] = {"mean": by * mean.value, "sd": by * mean.sd, "low": by * low, "high": by * high}
                row["patients"] = mean.patients
                row["undefined"] = row.get("undefined", {}) | _undefined(of_method[row["method"]], measure)
        compared, found = [], []
        for row in out if reference in tables else []:
            if row["method"] not in tables or row["method"] == reference:
                continue
            try:
                other = next(other for other in out if other["method"] == reference)
                _require_same_meaning(measure, row, other, of_method)
                row["shared"] = _shared(row, other)
                found.append(several_runs.difference(tables[row["method"]], tables[reference], row["shared"]))
                compared.append(row)
            except ValueError as error:
                row["not_compared"] = str(error)
        adjusted = statistics.holm([f.p for f in found])
        for row, f, p in zip(compared, found, adjusted, strict=True):
            most = np.inf if measure in LENGTHS else 1.0  # shares differ by no more
            row[f"{measure}_difference"] = {
                "value": by * f.value, "low": by * np.maximum(f.interval.low, -most),
                "high": by * np.minimum(f.interval.high, most), "p_holm": p, "smallest": by * f.smallest,
            }  # fmt: skip
    return out


def _digits(low: float, high: float) -> int:
    """Digits after the point that show how wide an interval is: one, or two of half its width."""
    half = (high - low) / 2
    return 1 if not 0 < half < 0.5 else int(np.clip(1 - np.floor(np.log10(half)), 1, 4))


def _cell(value: dict[str, float] | None) -> str:
    """`89.1 (88.1 to 90.1)`."""
    if value is None:
        return ""
    mean, low, high = value["mean"], value["low"], value["high"]
    if np.isnan(mean):
        return "not defined"
    digits = (1 if abs(mean) >= 10 else 2) if np.isnan(low) else _digits(low, high)
    if mean < 100 <= round(mean, digits):  # not all of it
        digits = 2
    text = f"{mean:.{digits}f}"
    return text if np.isnan(low) else f"{text} ({low:.{digits}f} to {high:.{digits}f})"


def _patients(found: list[dict[str, Any]]) -> set[int]:
    """Numbers of test patients; several where the methods are judged on other sets (tasks of a benchmark)."""
    return {row["patients"] for row in found if "patients" in row}


def _means(found: list[dict[str, Any]], facts: dict[str, Any]) -> list[list[str]]:
    """The lines of the first table, its head first."""
    also, states = facts.get("quotes", []), "quotes" in facts
    shown = [{**row, **(row["paper"] if states else {})} for row in found]  # measures that only the paper gives too
    measures = [m for m in (*OF_CLASSES, *OF_MASKS) if any(m in row for row in shown)]
    several = len(_patients(found)) > 1
    head = ["method", *(["state"] if states else []), "runs", *(["test patients"] if several else [])]
    given = {measure for measure in measures if any(measure in row["paper"] for row in found)}
    images = f" on {facts['paper_set']}" if facts.get("paper_set") else ""
    units = {row["unit"] for row in found if "unit" in row}
    unit = f", {units.pop()}" if len(units) == 1 and units != {""} else ""
    for measure in measures:
        head += [measure + unit * (measure in LENGTHS), *([f"{measure}, paper{images}"] if measure in given else [])]
    lines = [head + [f"{name}, paper" for name in also]]
    for row in found:
        paper = lambda name, row=row: "" if name not in row["paper"] else f"{row['paper'][name]:.2f}"
        line = [row["method"] + (" (LEAKAGE)" if row["leakage"] else ""), *([row["state"]] if states else [])]
        line.append(f"{row['runs']}" + (f" of {row['pretrainings']} pre-trainings" if row["pretrainings"] > 1 else ""))
        line += [str(row.get("patients", ""))] if several else []
        for measure in measures:
            line += [_cell(row.get(measure)), *([paper(measure)] if measure in given else [])]
        lines.append(line + [paper(name) for name in also])
    return lines


def _differences(found: list[dict[str, Any]]) -> list[list[str]]:
    """The lines of the second table, its head first; none if nothing was compared."""
    ends = [key for row in found for key in row if key.endswith("_difference")]
    measures = list(dict.fromkeys(ends))
    if not measures:
        return []
    head = ["method"]
    for measure in measures:
        name = measure.removesuffix("_difference")
        head += [name + " (less is better)" * (name in LENGTHS), "p (Holm)", "detectable"]
    lines = [head]
    for row in found:
        if not any(m in row for m in measures):
            continue
        line = [row["method"]]
        for measure in measures:
            d = row.get(measure)
            if d is None or np.isnan(d["low"]):
                line += ["" if d is None else "not defined" if np.isnan(d["value"]) else f"{d['value']:+.1f}", "", ""]
            else:
                p = "< 0.001" if d["p_holm"] < 0.001 else f"{d['p_holm']:.3f}"
                none = d["smallest"] >= 100 and measure.removesuffix("_difference") not in LENGTHS
                n = _digits(d["low"], d["high"])
                line += [f"{d['value']:+.{n}f} ({d['low']:+.{n}f} to {d['high']:+.{n}f})", p,
                         "none" if none else f"{d['smallest']:.{n}f}"]  # fmt: skip
        lines.append(line)
    return lines


def _note(found: list[dict[str, Any]], facts: dict[str, Any]) -> str:
    patients = _patients(found)
    over = f"{next(iter(patients), 0)} test patients" if len(patients) < 2 else "the test patients of each row"
    over += " (images, where the set does not name patients)"
    text = (
        f"Percent (distances in mm or pixels): mean over runs, with a 95 % interval over {over} and "
        "trainings (Obuchowski and Rockette); with one training over patients alone."
    )
    if any(row["paper"] for row in found):
        text += " The paper's numbers were measured on its own images, not on these."
    folds = max((row["folds"] for row in found), default=1)
    if folds > 1:
        text += (
            f" There are {folds} folds. The test patients of one fold are training patients of the others, so the "
            f"variance over patients is multiplied by {folds}/{folds - 1}."
        )
    for row in found:
        if row["left_out"]:
            text += f" {row['method']}: {row['left_out']} runs are left out, because their training lacks a fold."
        if row["uneven"]:
            text += (
                f" {row['method']}: a training has {row['uneven'][0]} to {row['uneven'][1]} networks on a fold; every "
                "fold counts the same."
            )
        for measure, (lacking, total) in row.get("undefined", {}).items():
            text += (
                f" {row['method']}: {measure} is not defined in {lacking} of {total} cases, because "
                + ("the truth lacks the label" if measure == "dice" else "the prediction or the truth is empty")
                + (
                    ". A network without any defined case has no mean, and neither has the method."
                    if np.isnan(row[measure]["mean"])
                    else ". Its mean leaves these cases out"
                    + (", which favours a method that misses structures." if measure != "dice" else ".")
                )
            )
        if "missed" in row:
            text += (
                f" {row['method']}: {row['missed']} structures in {row['missed_cases']} cases, over all runs, were not "
                "found; distances leave them out, so they favour a method that misses structures."
            )
        if "not_judged" in row:
            text += f" {row['method']} has no measures: {row['not_judged']}. Did its images change between two runs?"
        if "not_compared" in row:
            text += f" {row['method']} is not compared: {row['not_compared']}."
    uncounted = [row for row in found if row.get("uncounted") and "hd95" in row]
    if uncounted:
        listed = ", ".join(f"{row['method']} ({row['uncounted']} of {row['runs']})" for row in uncounted)
        text += f" Distances leave out missed structures, whose number was not kept for these runs: {listed}."
    if facts.get("ensembles"):
        text += " The interval of an ensemble covers the patients alone, and not what another training would change."
    if any(row.get("shared") for row in found):
        text += " Methods that start from the same pre-trainings are compared within each pre-training."
    if facts.get("small"):
        text += " A small network and a short training, which do not show how good the published methods are."
    if facts.get("phantoms"):
        text += " Simulated phantoms: not a result on ultrasound."
    return text


def _markdown(lines: list[list[str]]) -> list[str]:
    head, *body = ["| " + " | ".join(line) + " |" for line in lines]
    return [head, "|" + "---|" * len(lines[0]), *body]


def _html(lines: list[list[str]]) -> str:
    head, *body = lines
    top = "".join(f"<th>{html.escape(c)}</th>" for c in head)
    rest = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in line) + "</tr>" for line in body)
    return f"<table><thead><tr>{top}</tr></thead>{rest}</table>"


def _picture(
    networks: list[Network], facts: dict[str, Any], found: list[dict[str, Any]], folder: Path
) -> str:  # fmt: skip
    """Write the picture of the methods, and return it for the page; none if they are judged on several sets."""
    measure = study_figure.measure_of(found)
    if not measure or len(_patients(found)) > 1:  # methods on other sets have no order
        return ""
    trainings: dict[str, list[float]] = {}
    for n in networks:
        if measure in n.measures:
            value = n.measure(measure, np.ones((1, len(n.images))))[0]
            trainings.setdefault(n.method, []).append(100 * float(value))
    figure = study_figure.figure(found, trainings, facts.get("reference", ""))
    figure.savefig(folder / PICTURE, dpi=120)
    return page.embedded(page.png(figure), "methods in the order of their means")


def write(networks: list[Network], facts: dict[str, Any], folder: Path) -> str:
    """Write `table.md`, `table.csv`, `table.html` and `ranks.png`; return the text without its title."""
    whole = [n for name in facts["methods"] for n in _complete([n for n in networks if n.method == name])]
    with_ensembles, facts = ensembles.add(whole, facts)
    found = rows([*networks, *with_ensembles[len(whole) :]], facts)
    means, differences, note = _means(found, facts), _differences(found), _note(found, facts)
    lines, body = _markdown(means), _html(means)
    if differences:
        title = f"Difference from {facts['reference']}"
        meaning = (
            "In percent points (distances in their unit), with its 95 % interval, p adjusted for the number of "
            "methods, and the smallest difference that this set detects with 80 % power."
        )
        lines += ["", f"{title}. {meaning}", "", *_markdown(differences)]
        body += f"<h2>{html.escape(title)}</h2><p class=note>{html.escape(meaning)}</p>{_html(differences)}"
    lines += ["", note]
    body += _picture(with_ensembles, facts, found, folder)
    (folder / "table.md").write_text("\n".join([f"# {facts['title']}", "", *lines]) + "\n")
    (folder / "table.html").write_text(
        page.head(facts["title"]) + f"{body}<p class=note>{html.escape(note)}</p></html>"
    )
    _csv(found, folder / "table.csv")
    return "\n".join(lines)


def _csv(found: list[dict[str, Any]], path: Path) -> None:
    measures = [m for m in (*OF_CLASSES, *OF_MASKS) if any(m in row for row in found)]
    with open(path, "w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        names = ["mean", "sd", "low", "high"]
        apart = ["value", "low", "high", "p_holm", "smallest"]
        out.writerow(["method", "state", "leakage", "runs", "patients",
                      *(f"{m}_{n}" for m in measures for n in (*names, "paper")),
                      *(f"{m}_difference_{n}" for m in measures for n in apart)])  # fmt: skip
        for row in found:
            values = [v for m in measures for v in (*(row.get(m, {}).get(n) for n in names), row["paper"].get(m))]
            values += [row.get(f"{m}_difference", {}).get(n) for m in measures for n in apart]
            out.writerow([row["method"], row["state"], row["leakage"], row["runs"], row.get("patients"), *values])
