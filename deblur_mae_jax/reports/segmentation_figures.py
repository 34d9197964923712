"""The figures of a segmentation report."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from deblur_mae_jax.metrics import segmentation
from deblur_mae_jax.reports import class_names
from deblur_mae_jax.reports.cases import Cases

PLANES = ("sagittal", "coronal", "axial")
TRUTH, PREDICTED = "#1b9e77", "#d95f02"


@dataclasses.dataclass
class Shown:
    """One case to draw: its title, the image, and the true and predicted classes, each `(*space)`."""

    title: str
    image: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    spacing: tuple[float, ...]


MANY_LABELS = 6  # each measure of more labels has a row of its own


def box_plots(table: Cases) -> Figure:
    """Box plots of every measure per label; whiskers reach 1.5 times the quartile distance, points are all cases."""
    names = list(segmentation.MEASURES)
    labels = class_names.shown(table.labels)
    columns_ = 1 if len(labels) > MANY_LABELS else 3
    rows = -(-len(names) // columns_)
    figure = Figure(figsize=(11, (2.4 if columns_ == 1 else 3.2) * rows), layout="constrained")
    jitter = np.random.default_rng(0)
    axes = np.atleast_1d(figure.subplots(rows, columns_)).ravel()
    for axis in axes[len(names) :]:
        axis.set_visible(False)
    for axis, name in zip(axes[: len(names)], names, strict=True):
        columns = [v[np.isfinite(v)] for v in table.values[name].T]
        axis.boxplot(columns, tick_labels=labels, widths=0.5, showfliers=False)
        for number, values in enumerate(columns, start=1):
            x = number + jitter.uniform(-0.15, 0.15, len(values))
            axis.plot(x, values, ".", ms=3, alpha=0.5, color="tab:blue")
        axis.set_title(segmentation.MEASURES[name], fontsize=10)
        axis.set_ylabel("" if segmentation.HIGHER_IS_BETTER[name] else table.unit)
        axis.tick_params(axis="x", labelrotation=30 if len(labels) > 2 else 0)
        axis.grid(alpha=0.3, axis="y")
        if segmentation.HIGHER_IS_BETTER[name]:
            axis.set_ylim(-0.02, 1.02)
        else:
            axis.set_ylim(bottom=0)
    return figure


def curves(lines: list[dict[str, Any]], best_step: int | None, metric: str) -> Figure:
    """Training loss, learning rate and the validation measure against the step."""
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    loss, rate, score = figure.subplots(1, 3)

    def draw(axis: Any, key: str, **style: Any) -> None:
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if len(points) == 1:  # a line needs two
            style = {"marker": "o", "ms": 3} | style
        if points:
            axis.plot(*zip(*points, strict=True), **style)

    draw(loss, "loss", lw=0.8)
    draw(rate, "learning_rate", color="tab:green")
    keys = sorted({key for line in lines for key in line if key.startswith(f"val_{metric}")})
    for key in keys:
        style = {"lw": 2.0} if key == f"val_{metric}" else {"lw": 0.8}
        label = key.removeprefix(f"val_{metric}").strip("_").replace("_", " ") or "mean"
        draw(score, key, marker="o", ms=3, label=label, **style)
    loss.set(title="training loss", xlabel="step")
    rate.set(title="learning rate", xlabel="step")
    score.set(title=f"{segmentation.MEASURES[metric]} on validation", xlabel="step")
    for axis in (loss, rate, score):
        axis.grid(alpha=0.3)
        if best_step is not None and axis is not rate:
            axis.axvline(best_step, color="gray", ls=":", lw=1, label=f"used: step {best_step}")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    return figure


def middle(case: Shown) -> tuple[int, ...]:
    """Index of the plane with most of the truth for every axis (of the prediction if the truth is empty)."""
    mask = case.truth > 0 if (case.truth > 0).any() else case.predicted > 0
    if not mask.any():
        return tuple(n // 2 for n in mask.shape)
    axes = range(mask.ndim)
    return tuple(int(mask.sum(tuple(a for a in axes if a != axis)).argmax()) for axis in axes)


def overlays(shown: list[Shown]) -> Figure:
    """Draw cases with outlines of truth and prediction, per row three planes of a volume or two 2-D images."""
    flat = shown[0].image.ndim == 2
    columns = min(2, len(shown)) if flat else 3
    rows = -(-len(shown) // columns) if flat else len(shown)
    figure = Figure(figsize=(3.4 * columns, 3.3 * rows + 0.4), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns, squeeze=False))
    for axis in axes.ravel():
        axis.set_axis_off()
    for number, case in enumerate(shown):
        low, high = np.percentile(case.image, (0.5, 99.5))
        if flat:
            axis = axes[number // columns, number % columns]
            _draw(axis, (case.image, case.truth, case.predicted), low, high, 1.0)
            axis.set_title(case.title, fontsize=8)
            continue
        for plane, (name, at) in enumerate(zip(PLANES, middle(case), strict=True)):
            # Rows run from head to feet (or front to back), columns in RAS order.
            cut = [np.take(v, at, axis=plane).T[::-1] for v in (case.image, case.truth, case.predicted)]
            across, down = (s for a, s in enumerate(case.spacing) if a != plane)
            _draw(axes[number, plane], cut, low, high, down / across)
            axes[number, plane].set_title(f"{case.title}\n{name}" if not plane else name, fontsize=8)
    figure.suptitle("outlines: truth in green, prediction in orange, a shade for each label", fontsize=9)
    return figure


def _draw(axis: Any, cut: Any, low: float, high: float, aspect: float) -> None:
    image, truth, predicted = cut
    axis.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), aspect=aspect)
    for mask, colour in ((truth, TRUTH), (predicted, PREDICTED)):
        count = max(int(truth.max()), int(predicted.max()), 1)
        for label in range(1, int(mask.max()) + 1):
            if (mask == label).any() and min(mask.shape) > 1:  # one row has no outline
                axis.contour(
                    mask == label, levels=[0.5], colors=[colour], linewidths=1.2,
                    alpha=1.0 - 0.5 * (label - 1) / count,
                )  # fmt: skip
