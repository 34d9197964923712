"""The figures of a classification report."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from sklearn import metrics
from sklearn.decomposition import PCA

from deblur_mae_jax.metrics import classification
from deblur_mae_jax.reports import class_names
from deblur_mae_jax.reports.predictions import Predictions

GRID = np.linspace(0, 1, 101)
BAND_DRAWS = 200
MIN_IN_BIN = 3
MOST_CELLS = 25  # numbers in the cells of a larger confusion matrix could not be read


def curves_of(labels: np.ndarray, p: np.ndarray, kind: str, weights: np.ndarray) -> np.ndarray:
    """ROC (`roc`) or precision-recall (`pr`) curves on `GRID`, each the mean over its classes: `(D, len(GRID))`.

    The curves are scikit-learn's, for all sets of weights at once.

    labels, p: true classes `(N,)` and probabilities `(N, C)`.
    weights: how often each image counts, `(D, N)`. A class that has no image, or all, is left out of that curve.
    """
    chosen = [1] if p.shape[1] == 2 else np.unique(labels).tolist()
    rows = [_curves_of_class(labels == c, p[:, c], kind, weights) for c in chosen]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # no class is left: NaN
        return np.nanmean(rows, axis=0)


def _curves_of_class(truth: np.ndarray, score: np.ndarray, kind: str, weights: np.ndarray) -> np.ndarray:
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)  # the last image of every score
    weights = weights[:, order].astype(np.float64)
    hits = np.cumsum(weights * truth[order], axis=1)[:, ends]
    alarms = np.cumsum(weights * ~truth[order], axis=1)[:, ends]
    start = np.zeros((len(weights), 1))
    with np.errstate(invalid="ignore"):
        sensitivity, fallout = hits / hits[:, -1:], alarms / alarms[:, -1:]
        # Before the first image that counts the precision is 1, as scikit-learn has it.
        precision = np.where(hits + alarms > 0, hits / (hits + alarms), 1.0)
    x, y = (fallout, sensitivity) if kind == "roc" else (sensitivity, precision)
    x, y = np.hstack([start, x]), np.hstack([start if kind == "roc" else start + 1, y])
    out = np.array([np.interp(GRID, one, other) for one, other in zip(x, y, strict=True)])
    if kind == "roc":
        out[:, 0] = 0.0
    out[(hits[:, -1] == 0) | (alarms[:, -1] == 0)] = np.nan
    return out


def _band(p: Predictions, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Pointwise 95 % band from a bootstrap over patients."""
    _, which = np.unique(p.patients, return_inverse=True)
    count = int(which.max()) + 1
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=BAND_DRAWS)
    lines = curves_of(p.labels, p.probabilities, kind, drawn[:, which])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a band is NaN if no resample has both classes
        low, high = np.nanpercentile(lines, [2.5, 97.5], axis=0)
    return low, high


def _grid(count: int, columns: int = 3, height: float = 3.4) -> tuple[Figure, list[Any]]:
    rows = -(-count // columns)
    figure = Figure(figsize=(11, height * rows), layout="constrained")
    axes = np.atleast_1d(figure.subplots(rows, columns)).ravel().tolist()
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def judgement(p: Predictions, temperature: float | None) -> Figure:
    """ROC, precision-recall, confusion matrix and reliability."""
    figure, (roc, pr, confusion, reliability) = _grid(4, columns=2, height=3.9)
    several = "mean over classes, one against the rest" if len(p.classes) > 2 else ""
    for axis, kind in ((roc, "roc"), (pr, "pr")):
        line = curves_of(p.labels, p.probabilities, kind, np.ones((1, len(p))))[0]
        low, high = _band(p, kind)
        axis.fill_between(GRID, low, high, alpha=0.25, lw=0, label="95 %, bootstrap over patients")
        axis.plot(GRID, line)
        axis.set(xlim=(0, 1), ylim=(0, 1.02))
    roc.plot([0, 1], [0, 1], ls="--", color="gray", lw=0.8)
    title = several or f"positive: {class_names.shown(p.classes)[-1]}"
    roc.set(title=f"ROC ({title})", xlabel="1 - specificity", ylabel="sensitivity")
    pr.set(title=f"precision and recall ({title})", xlabel="recall", ylabel="precision")
    roc.legend(fontsize=8, loc="lower right")

    table = metrics.confusion_matrix(p.labels, p.probabilities.argmax(1), labels=range(len(p.classes)))
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    confusion.imshow(share, cmap="Blues", vmin=0, vmax=1)
    filled = np.argwhere(table > 0) if len(table) > class_names.NUMBERED else np.ndindex(table.shape)
    for i, j in filled if len(table) <= MOST_CELLS else ():
        color = "white" if share[i, j] > 0.6 else "black"
        confusion.text(j, i, str(table[i, j]), ha="center", va="center", color=color, fontsize=8)
    names, every = class_names.shown(p.classes), max(1, -(-len(p.classes) // MOST_CELLS))
    numbered = class_names.note(p.classes)
    confusion.set(title=f"confusion (images{'; ' if numbered else ''}{numbered})", xlabel="predicted", ylabel="true")
    turn = 90 if len(names) > 3 else 0
    confusion.set_xticks(range(0, len(names), every), names[::every], rotation=turn, fontsize=8)
    confusion.set_yticks(range(0, len(names), every), names[::every], fontsize=8)

    versions = [("as predicted", p.probabilities, "tab:blue")]
    if temperature is not None:
        scaled = classification.scale(p.probabilities, temperature)
        versions.append((f"temperature {temperature:.2f}", scaled, "tab:orange"))
    for name, values, color in versions:
        confidence, right = values.max(1), values.argmax(1) == p.labels
        which = np.clip(np.ceil(confidence * classification.BINS).astype(int), 1, None)
        bins = [b for b in range(1, classification.BINS + 1) if (which == b).sum() >= MIN_IN_BIN]
        x = [confidence[which == b].mean() for b in bins]
        y = [right[which == b].mean() for b in bins]
        size = [8 + 120 * (which == b).mean() for b in bins]
        reliability.plot(x, y, color=color, lw=0.8)
        reliability.scatter(x, y, s=size, color=color, label=name)
    reliability.plot([0, 1], [0, 1], ls="--", color="gray", lw=0.8)
    reliability.set(
        title=f"reliability (bins with at least {MIN_IN_BIN} images)",
        xlabel="confidence",
        ylabel="accuracy",
    )
    reliability.legend(fontsize=8, loc="upper left")
    return figure


def embedding_and_blur(p: Predictions, drawn: np.ndarray, features: np.ndarray) -> Figure:
    """Principal components of the features, and the blur sigma by class if there is one.

    drawn: places in `p` of the images whose features `(N, D)` these are, `(N,)`.
    """
    blurred = bool(np.isfinite(p.sigma).any())
    figure, axes = _grid(2 if blurred else 1, columns=2 if blurred else 1, height=3.9)
    labels = p.labels[drawn]
    beside: dict[str, Any] = {"bbox_to_anchor": (1.0, 1.0), "loc": "upper left"} if len(p.classes) > 4 else {}
    if len(features) > 2 and features.shape[1] > 1:
        components = PCA(2).fit(features)
        points, share = components.transform(features), components.explained_variance_ratio_
        some = f" of {len(drawn):,} random images" if len(drawn) < len(p.labels) else ""
        names = class_names.shown(p.classes)
        colours = colormaps["tab10" if len(names) <= 10 else "tab20" if len(names) <= 20 else "turbo"]
        for i, name in enumerate(names):
            inside = labels == i
            colour = colours(i) if len(names) <= 20 else colours(i / (len(names) - 1))
            axes[0].scatter(*points[inside].T, s=9, alpha=0.7, label=name, color=colour)
        axes[0].set(
            title=f"features{some}, first two components ({share.sum():.0%} of the variance)",
            xticks=[], yticks=[],
        )  # fmt: skip
        if len(names) <= 20:
            axes[0].legend(fontsize=8, **beside)
    if blurred:
        values = np.unique(p.sigma[np.isfinite(p.sigma)])
        groups = {name: p.labels == i for i, name in enumerate(class_names.shown(p.classes))}
        if len(groups) > class_names.NUMBERED:
            groups = {"all classes": np.ones(len(p.labels), bool)}
        width = 0.8 / len(groups)
        for i, (name, inside) in enumerate(groups.items()):
            sigmas = p.sigma[inside]
            share = [(np.isclose(sigmas, v)).mean() if len(sigmas) else 0.0 for v in values]
            axes[1].bar(np.arange(len(values)) + (i - (len(groups) - 1) / 2) * width, share,
                        width, label=name)  # fmt: skip
        axes[1].set_xticks(range(len(values)), [f"{v:g}" for v in values])
        axes[1].set(title="blur of the images", xlabel="sigma", ylabel="share of the class")
        axes[1].legend(fontsize=8, **beside)
    return figure


def curves(lines: list[dict[str, Any]], best_step: int | None = None) -> Figure:
    """Training loss and learning rate, and the validation measures, against the step."""
    figure, (loss, rate, score) = _grid(3)

    def draw(axis, key, **style):
        points = [(line["step"], line[key]) for line in lines if line.get(key) is not None]
        if len(points) == 1:  # a line needs two
            style = {"marker": "o", "ms": 3} | style
        if points:
            axis.plot(*zip(*points, strict=True), **style)

    draw(loss, "loss", lw=0.8, label="training")
    draw(loss, "val_log_loss", marker="o", ms=3, label="validation")
    draw(rate, "learning_rate", color="tab:green")
    for key in ("accuracy", "balanced_accuracy", "f1_macro", "auroc"):
        draw(score, f"val_{key}", marker="o", ms=3, label=key.replace("_", " "))
    loss.set(title="cross-entropy", xlabel="step")
    rate.set(title="learning rate", xlabel="step")
    score.set(title="validation images", xlabel="step", ylim=(0, 1.02))
    for axis in (loss, rate, score):
        axis.grid(alpha=0.3)
        if best_step is not None and axis is not rate:
            axis.axvline(best_step, color="gray", ls=":", lw=1, label=f"used: step {best_step}")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8)
    return figure


def overlay(image: np.ndarray, attention: np.ndarray) -> np.ndarray:
    """Overlay the patch attention on an image `(H, W, C)`. Returns gray levels `(H, W, 3)`."""
    side = image.shape[0] // attention.shape[0]
    spread = attention - attention.min()
    spread = spread / max(float(spread.max()), 1e-9)
    heat = np.kron(spread, np.ones((side, side)))[..., None]
    gray = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    red = np.array([255.0, 80.0, 0.0])
    return (1 - 0.55 * heat) * gray + 0.55 * heat * red
