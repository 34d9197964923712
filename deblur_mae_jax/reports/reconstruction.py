"""The page of a pre-training run: reconstructions, curves, numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from deblur_mae_jax.reports import page

MAX_SHEETS = 10  # limit per page; all sheets are kept as files next to the page
FEATURES = {
    "feature_spread": "spread of the features over the images (1: all directions, 0: collapsed)",
    "effective_rank": "effective rank of the features of these images (RankMe)",
    "uniformity": "uniformity of the features (0: collapsed, about -4: uniform)",
}
PROBES = {
    "knn_balanced_accuracy": "balanced accuracy of nearest neighbours on the labelled images, features frozen",
    "knn_auroc": "AUROC of the same",
    "linear_balanced_accuracy": "balanced accuracy of a linear probe on the labelled images, features frozen",
    "linear_auroc": "AUROC of the same",
}
MEANING = {
    "eval_loss": "loss on the evaluation images",
    "eval_loss_of_mean": "loss of predicting each image by its mean (baseline)",
    "psnr_degraded": "PSNR of the degraded input (dB), from the mean squared error over all images",
    "psnr_restored": "PSNR of its unmasked reconstruction (dB), from the same",
    "ssim_degraded": "SSIM of the degraded input",
    "ssim_restored": "SSIM of its unmasked reconstruction",
    **FEATURES,
}
_GIVEN = ", given the true mean and deviation of every patch: not comparable with networks that predict gray levels"
# Of a network that predicts normalised patches (`task.norm_pix_loss`).
NORMALISED = MEANING | {
    "eval_loss_of_mean": "loss of predicting each patch by its mean (baseline)",
    "psnr_restored": f"PSNR of its unmasked reconstruction (dB){_GIVEN}",
    "ssim_restored": f"SSIM of its unmasked reconstruction{_GIVEN}",
}
# Of a network that draws the masked patches.
GENERATIVE = MEANING | {
    "psnr_restored": "PSNR of the mean of several drawings from the visible patches (dB)",
    "ssim_restored": "SSIM of that mean",
    "psnr_sampled": "PSNR of one drawing (dB)",
    "ssim_sampled": "SSIM of one drawing",
}
# Of volumes.
VOLUMES = MEANING | {
    "eval_loss": "loss on the evaluation volumes, the sum of its parts",
    "eval_reconstruction": "L1 error of the reconstruction, a part of the loss",
    "eval_loss_of_mean": "L1 error of predicting each cube by its median (baseline of the reconstruction)",
    "eval_contrast": "contrastive loss, a part of the loss",
    "eval_rotation_accuracy": "share of the rotations that are recognised",
    "psnr_degraded": "PSNR of the disrupted input (dB); the peak is the range of each clean cube",
    "psnr_restored": "PSNR of its unmasked reconstruction (dB), with the same peak",
}
DRAWN = {
    "clean": "clean",
    "degraded": "input",
    "masked": "visible patches",
    "reconstructed": "denoised in one step",
    "sampled": "one drawing",
    "restored": "mean of drawings",
}
COLUMNS = {
    "clean": "clean",
    "degraded": "degraded input",
    "masked": "visible patches",
    "reconstructed": "reconstructed",
    "difference": "|difference| x 2",
    "restored": "nothing masked",
}


def reconstruction_sheet(
    arrays: dict[str, np.ndarray], count: int, names: list[str], num_levels: int, step_size: float
) -> Image.Image:
    """Clean, degraded, masked, reconstructed and |difference| of the first `count` images."""
    rows, labels = [], []
    columns = DRAWN if "sampled" in arrays else COLUMNS
    for i in range(min(count, len(arrays["clean"]))):
        shown = {k: arrays[k][i] for k in columns if k in arrays}
        shown["difference"] = 2 * np.abs(shown["reconstructed"] - shown["clean"])
        rows.append([shown[k] for k in columns])
        label = Path(names[i]).stem[:16]
        if num_levels:
            level = int(arrays["level"][i])
            label += f"\nlevel {level}/{num_levels}"
            if step_size:
                label += f"\nsigma {level * step_size:.1f}"
        labels.append(label)
    return page.sheet(rows, list(columns.values()), labels)


def curve(axis: Axes, lines: list[dict[str, Any]], key: str, **style: Any) -> None:
    """Draw the values of `key` in lines of `metrics.jsonl` against the step."""
    points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
    if len(points) == 1:  # a line needs two
        style = {"marker": "o", "ms": 3} | style
    if points:
        axis.plot(*zip(*points, strict=True), **{"label": key.replace("_", " ")} | style)


def finish(*axes: Axes) -> None:
    """Add grids, and legends where there are curves."""
    for axis in axes:
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)


# PSNR in dB of an image with itself; it would be infinite without a bound on the logarithm.
EQUAL = 119.0


def _degraded(measures: dict[str, Any]) -> bool:
    """Whether the evaluated inputs differ from the originals: those of MAE do not."""
    return (measures.get("psnr_degraded") or EQUAL) < EQUAL


def figure(lines: list[dict[str, Any]]) -> Figure:
    """Training and evaluation loss, learning rate, and PSNR against the step."""
    drawing = Figure(figsize=(10, 3.2), layout="constrained")
    left, middle, right = drawing.subplots(1, 3)
    curve(left, lines, "loss", lw=0.8, color="tab:blue")
    curve(left, lines, "eval_loss", marker="o", ms=3, color="tab:orange")
    curve(left, lines, "eval_reconstruction", marker="s", ms=3, color="tab:red")  # of volumes
    curve(left, lines, "eval_loss_of_mean", ls="--", color="gray", label="a plain gray patch")
    left.set(title="loss", xlabel="step", yscale="log")
    curve(middle, lines, "learning_rate", color="tab:green")
    middle.set(title="learning rate", xlabel="step")
    if any(_degraded(line) for line in lines):
        curve(right, lines, "psnr_degraded", ls="--", color="gray")
    curve(right, lines, "psnr_restored", marker="o", ms=3, color="tab:red")
    drawn = any(line.get("psnr_sampled") is not None for line in lines)  # a generative network restores from a part
    right.set(title=f"PSNR (dB), {DRAWN['restored'] if drawn else COLUMNS['restored']}", xlabel="step")
    finish(left, middle, right)
    return drawing


def probe_figure(lines: list[dict[str, Any]]) -> Figure:
    """Measures of frozen features on labelled images, and signs of a collapse, against the step."""
    drawing = Figure(figsize=(10, 3.2), layout="constrained")
    left, middle, right = drawing.subplots(1, 3)
    for axis, measure in ((left, "balanced_accuracy"), (middle, "auroc")):
        for probe, colour in (("knn", "tab:blue"), ("linear", "tab:orange")):
            curve(axis, lines, f"{probe}_{measure}", marker="o", ms=3, color=colour)
        axis.set(title=f"{'AUROC' if measure == 'auroc' else 'balanced accuracy'}, labelled images", xlabel="step")
        axis.set_ylim(0, 1.05)
    curve(right, lines, "effective_rank", marker="o", ms=3, color="tab:green")
    right.set(title="effective rank (RankMe)", xlabel="step")
    right.set_ylim(0, 1.1 * right.get_ylim()[1])
    finish(left, middle, right)
    return drawing


def level_table(rows: list[dict[str, float]]) -> str:
    """Table of PSNR and SSIM of the blurred input and of its unmasked reconstruction, one row per level."""
    measures = [f"{measure}, {of}" for measure in ("PSNR (dB)", "SSIM") for of in ("blurred", "reconstructed")]
    cells = [
        (
            f"level {row['level']:.0f}",
            [
                f"{row['sigma']:.1f}" if row["sigma"] else "",
                f"{row['images']:.0f}",
                *(f"{row[name]:.2f}" if row[name] < EQUAL else "equal" for name in ("psnr_degraded", "psnr_restored")),
                *(f"{row[name]:.3f}" for name in ("ssim_degraded", "ssim_restored")),
            ],
        )
        for row in rows
    ]
    return page.grid(["sigma (px)", "images", *measures], cells)


@dataclasses.dataclass(frozen=True)
class Look:
    """What differs between the pages of objectives.

    figure: draws the curves from the lines of `metrics.jsonl`.
    meaning: what each measure is.
    heading: of the sheets.
    """

    figure: Callable[[list[dict[str, Any]]], Figure] = figure
    meaning: dict[str, str] = dataclasses.field(default_factory=lambda: MEANING)
    heading: str = "Reconstructions"


def write(
    folder: Path,
    *,
    title: str,
    facts: dict[str, Any],
    latest: dict[str, Any],
    by_level: list[dict[str, float]],
    lines: list[dict[str, Any]],
    sheets: list[tuple[int, Path]],
    config: dict[str, Any],
    skipped: int,
    look: Look | None = None,
) -> Path:
    """Write a self-contained `index.html` with the newest sheet first.

    latest: measures of the evaluation images by name.
    by_level: the same measures for the images of each blur level, with `level`, `sigma` and `images`.
    lines: lines of `metrics.jsonl`.
    sheets: (step, PNG) of every evaluation.
    config: the flattened config.
    skipped: number of files that were left out.
    look: curves, meanings and heading; None: those of a reconstruction.
    """
    look = look or Look()
    if len(sheets) > MAX_SHEETS:  # the newest, and earlier ones evenly spaced
        chosen = np.linspace(0, len(sheets) - 1, MAX_SHEETS).round().astype(int)
        sheets = [sheets[i] for i in chosen]
    monitored = any(line.get(name) is not None for line in lines for name in PROBES)
    figures = {"loss.png": look.figure(lines)} | ({"probes.png": probe_figure(lines)} if monitored else {})
    curves = page.figures(folder, figures)
    sections = [page.table_of(facts)]
    if skipped:
        sections.append(f"<p>{skipped} files were not used: see <code>skipped.csv</code>.</p>")
    if latest:
        left_out = () if _degraded(latest) else ("psnr_degraded", "ssim_degraded")
        named = {(look.meaning | PROBES).get(k, k): f"{v:.4f}" for k, v in latest.items() if k not in left_out}
        sections += ["<h2>Evaluation</h2>", page.table_of(named)]
    if by_level:
        sections += ["<h2>By blur level</h2>", level_table(by_level)]
    sections += ["<h2>Curves</h2>", page.embedded(curves["loss.png"], "curves of the run")]
    if monitored:
        sections.append(page.embedded(curves["probes.png"], "frozen features on labelled images"))
    for number, (step, path) in enumerate(reversed(sheets)):
        sheet = page.embedded(path.read_bytes(), f"{look.heading} at step {step}")
        heading = f"{look.heading} at step {step}"
        if number == 0:
            sections.append(f"<h2>{heading}</h2>{sheet}")
        else:
            sections.append(f"<details><summary>{heading}</summary>{sheet}</details>")
    return page.write(folder, title, [*sections, page.details("Config", config)])
