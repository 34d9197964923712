"""Building blocks of all report pages: tables, figures, sheets of images, and the page, which can be read offline."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from deblur_mae_jax.data.audit import Leaks
from deblur_mae_jax.errors import counted
from deblur_mae_jax.workdir import goodput, run_folder
from deblur_mae_jax.workdir.run_folder import Workdir

GAP = 6


def _tile(array: np.ndarray, height: int) -> Image.Image:
    array = np.rint(np.clip(array, 0, 255)).astype(np.uint8)
    image = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array).convert("RGB")
    if height != image.height:
        width = round(image.width * height / image.height)
        image = image.resize((width, height), Image.Resampling.NEAREST)
    return image


def sheet(rows: list[list[np.ndarray]], columns: list[str], labels: list[str], tile: int = 0) -> Image.Image:
    """A labelled table of images `(H, W, C)` in gray levels; small ones are enlarged by an integer factor."""
    side = rows[0][0].shape[0]
    tile = tile or side * max(1, round(144 / side))
    font = ImageFont.load_default(size=13)
    lines = [label.split("\n") for label in labels]
    margin = max((int(font.getlength(word)) for words in lines for word in words), default=0)
    margin += 2 * GAP if margin else GAP
    tiles = [[_tile(image, tile) for image in row] for row in rows]
    wide = max(image.width for row in tiles for image in row) + GAP
    out = Image.new("RGB", (margin + len(columns) * wide, 26 + len(rows) * (tile + GAP)), "white")
    draw = ImageDraw.Draw(out)
    for c, name in enumerate(columns):
        draw.text((margin + c * wide, 6), name, fill="black", font=font)
    for r, row in enumerate(tiles):
        top = 26 + r * (tile + GAP)
        draw.multiline_text((GAP, top + 4), labels[r], fill="black", font=font)
        for c, image in enumerate(row):
            out.paste(image, (margin + c * wide, top))
    return out


def gallery(images: list[np.ndarray], labels: list[str], columns: int, tile: int) -> Image.Image:
    """Images `(H, W, C)` in gray levels, `tile` pixels high, each with its label above it."""
    font = ImageFont.load_default(size=13)
    rows = -(-len(images) // columns)
    tiles = [_tile(image, tile) for image in images]
    wide = max(*(image.width for image in tiles), *(round(font.getlength(label)) for label in labels))
    out = Image.new("RGB", (columns * (wide + GAP) + GAP, rows * (tile + 26) + GAP), "white")
    draw = ImageDraw.Draw(out)
    for number, (image, label) in enumerate(zip(tiles, labels, strict=True)):
        x, y = GAP + number % columns * (wide + GAP), number // columns * (tile + 26)
        draw.text((x, y + 7), label, fill="black", font=font)
        out.paste(image, (x, y + 26))
    return out


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def png_of(image: Image.Image) -> bytes:
    """An image as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def embedded(data: bytes, alt: str) -> str:
    """A PNG inside a page."""
    code = base64.b64encode(data).decode()
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{code}">'


def table_of(values: dict[str, Any]) -> str:
    """A table with two columns: name and value."""
    rows = "".join(f"<tr><th>{html.escape(str(k))}</th><td>{html.escape(str(v))}</td></tr>" for k, v in values.items())
    return f"<table>{rows}</table>"


STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:1rem auto;padding:0 1rem;color:#222}
img{max-width:100%;height:auto;border:1px solid #ddd}
h1{font-size:1.4rem;overflow-wrap:anywhere}h2{font-size:1.1rem}
table{border-collapse:collapse;display:block;overflow-x:auto}
th,td{text-align:left;padding:.15rem .8rem .15rem 0;border-bottom:1px solid #eee;font-weight:400}
thead th{color:#222;font-weight:600}
td.n{text-align:right;font-variant-numeric:tabular-nums}
.warn{background:#fff3cd;border-left:4px solid #d39e00;padding:.5rem .8rem}.note{color:#555}
details{margin:.5rem 0}summary{cursor:pointer}
"""


def head(title: str) -> str:
    """The beginning of a page."""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width,initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{STYLE}</style><h1>{html.escape(title)}</h1>"
    )


def write(folder: Path, title: str, sections: list[str]) -> Path:
    """Write these parts to one self-contained `index.html`."""
    path = folder / "index.html"
    path.write_text("\n".join([head(title), *filter(None, sections), "</html>"]), encoding="utf-8")
    return path


def figures(folder: Path, drawn: dict[str, Figure]) -> dict[str, bytes]:
    """Write figures as PNG files next to the page. Returns the PNG data by file name."""
    files = {name: png(figure) for name, figure in drawn.items()}
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return files


def progress(folder: Path, title: str, latest: dict[str, float], curves: Figure) -> Path:
    """Write the page of an unfinished run: validation measures and curves."""
    return write(folder, title, [
        "<p>This run is not finished. The test images have not been evaluated.</p>",
        table_of({name: f"{value:.4f}" for name, value in latest.items()}),
        embedded(png(curves), "curves"),
    ])  # fmt: skip


@dataclasses.dataclass
class Notes:
    """Content of the page of a judged run other than the numbers.

    config: the flattened config.
    lines: lines that describe how the run was set up.
    best_step: training step of the weights; None for a frozen encoder.
    curves: lines of `metrics.jsonl`.
    skipped: number of files that were left out.
    """

    title: str
    config: dict[str, Any]
    lines: list[str]
    best_step: int | None
    curves: list[dict[str, Any]]
    skipped: int


def judged(
    folder: Path,
    notes: Notes,
    verdict: str,
    warnings: list[str],
    facts: dict[str, Any],
    sections: dict[str, str],
) -> Path:
    """Write the page of a judged run: verdict, warnings, facts, `sections` by heading, and how the run was made."""
    box = "".join(f"<p>{html.escape(line)}</p>" for line in warnings)
    left_out = f"<p>{notes.skipped} files were not used: see <code>skipped.csv</code>.</p>"
    return write(folder, notes.title, [
        f"<p><b>{html.escape(verdict)}</b></p>",
        f"<div class=warn>{box}</div>" if box else "",
        table_of(facts),
        left_out if notes.skipped else "",
        *(f"<h2>{html.escape(heading)}</h2>{content}" for heading, content in sections.items() if content),
        "<h2>How it was made</h2>",
        "".join(f"<p class=note>{html.escape(line)}</p>" for line in notes.lines),
        "<p class=note>Every number here is computed from <code>predictions.csv</code>. For research use only; "
        "not a medical device.</p>",
        details("Config", notes.config),
        details("Environment", flat(run_folder.environment())),
    ])  # fmt: skip


def leakage(lines: list[str]) -> list[str]:
    """A warning for each kind of leak."""
    return [f"Leakage: {line}." for line in lines]


def audited(leaks: Leaks, patients_known: bool, config: dict[str, Any]) -> str:
    """What was compared between the splits, and whether there are copies.

    config: the flat config of the run.
    """
    checked = ["identical pixels"]
    checked.append("patients in two splits" if patients_known else "(patients are unknown)")
    if leaks.near_checked:
        checked.append("perceptual hashes")
    elif config["report.audit"] == "near":
        checked.append("(similar volumes are not looked for: perceptual hashes are for images)")
    if leaks.pretraining_known:
        checked.append("images of pre-training")
    elif config["init_from"]:
        checked.append("(the images of pre-training are unknown)")
    result = "found copies" if leaks.any else "found none"
    return f"<p>Compared: {', '.join(checked)}; {result}. Pairs: <code>leakage.csv</code>.</p>"


def never_improved(curves: list[dict[str, Any]], metric: str, higher: bool) -> list[str]:
    """A line if the validation measure was best before the first step; else [].

    curves: lines of `metrics.jsonl`.
    metric: measure that selected the weights on the validation images.
    higher: whether a higher value is better.
    """
    values = [(line["step"], line[f"val_{metric}"]) for line in curves if line.get(f"val_{metric}") is not None]
    if len(values) < 2 or values[0][0] != 0:
        return []
    (_, first), *later = values
    sign = 1 if higher else -1
    perfect = higher and first >= 1
    if perfect or max(sign * value for _, value in later) > sign * first:
        return []
    return [
        f"The validation {metric.replace('_', ' ')} never improved on its first value, that of the network before "
        "training."
    ]


def no_test_split(judged_on: str) -> list[str]:
    """Return a warning if the numbers are not those of test images."""
    if judged_on == "test":
        return []
    return [
        "This run has no test split. The numbers are from the validation images, which were also used to choose "
        "the weights, and are therefore too optimistic."
    ]


def common_facts(notes: Notes, numbers: dict[str, Any]) -> dict[str, str]:
    """The judged images, the training images, the weights, the start and the intervals."""
    judged_on, metric = numbers["judged_on"], notes.config["select.metric"]
    split = numbers["splits"][judged_on]
    best = f"step {notes.best_step}, with the best {named(metric)} on validation"
    return {
        "judged on": f"{split['images']} {judged_on} images {of_patients(split)}",
        "trained on": f"{numbers['n_train']} images",
        "weights": "frozen encoder" if notes.best_step is None else best,
        "start": notes.config["init_from"] or "from scratch",
        "intervals": numbers["intervals"],
    }  # fmt: skip


def time_spent(workdir: Workdir) -> dict[str, str]:
    """How long the run has taken since its first start, and for what; empty for what trains nothing."""
    starts = goodput.read(workdir.time)
    return {"time": goodput.line(starts)} if starts else {}


def details(summary: str, values: dict[str, Any]) -> str:
    """A table that opens on a click."""
    return f"<details><summary>{summary}</summary>{table_of(values)}</details>"


def grid(columns: list[str], rows: list[tuple[str, list[str]]]) -> str:
    """A table of numbers: a heading for each column, and for each row its heading and cells (escaped already)."""
    top = "".join(f"<th>{html.escape(name)}</th>" for name in columns)
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>" + "".join(f"<td class=n>{c}</td>" for c in cells) + "</tr>"
        for name, cells in rows
    )
    return f"<table><thead><tr><th></th>{top}</tr></thead>{body}</table>"


def named(metric: str) -> str:
    """A measure as a reader knows it: `f1_macro` -> "macro F1"."""
    words = {"auroc": "AUROC", "f1_macro": "macro F1", "f1_weighted": "weighted F1", "f1_binary": "F1", "dice": "Dice",
             "iou": "IoU", "hd": "Hausdorff distance", "hd95": "95 % Hausdorff distance"}  # fmt: skip
    return words.get(metric, metric.replace("_", " "))


def cell(entry: dict[str, Any]) -> str:
    """`0.812 (0.771 to 0.850)`, or a dash."""
    if entry.get("value") is None:
        return "-"
    text = three_digits(entry["value"])
    if entry.get("low") is not None:
        text += f" ({three_digits(entry['low'])} to {three_digits(entry['high'])})"
    return text


def three_digits(value: float) -> str:
    """`0.812`; a value that is nearly 0 or 1 is not rounded to it."""
    text = f"{value:.3f}"
    if text == "0.000" and value > 0:
        return "< 0.001"
    return "> 0.999" if text == "1.000" and value < 1 else text


def of_patients(split: dict[str, Any]) -> str:
    """The number of patients of the images, as text."""
    if split["patients_known"]:
        return f"of {counted(split['patients'], 'patient')}"
    return "(patients unknown: every image counts as one patient)"


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested record as one table."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            out |= flat(value, f"{prefix}{key} ")
        else:
            out[f"{prefix}{key}"] = value
    return out
