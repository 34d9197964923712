"""Figures of a blur search: D2MAE's Fig. 3b (sigma of a set) and Fig. 3a (one image at every level)."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from deblur_mae_jax.inference.blur_search import Table


def histogram(table: Table, labels: list[str] | None = None) -> Figure:
    """Plot how often each sigma was best, by class if there are classes."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axis = figure.subplots()
    x = np.arange(len(table.levels))
    names = sorted({name for name in labels if name}) if labels else []
    groups = [(name, np.array([label == name for label in labels or []])) for name in names]
    if not 2 <= len(groups) <= 10:
        groups = [("all images", np.ones(len(table.names), bool))]
    width = 0.8 / len(groups)
    for number, (name, inside) in enumerate(groups):
        best = table.best[inside]
        share = [(best == level).mean() if len(best) else 0.0 for level in table.levels]
        left = x + (number - (len(groups) - 1) / 2) * width
        axis.bar(left, share, width, label=f"{name} ({inside.sum()})")
    axis.set_xticks(x, [f"{s:g}" for s in table.sigmas])
    axis.set(
        xlabel="sigma of the best level", ylabel="share of the images",
        title=f"optimal blurriness, {len(table.names)} images",
    )  # fmt: skip
    axis.legend(fontsize=8)
    return figure


def strip(clean: np.ndarray, degraded: np.ndarray, restored: np.ndarray, table: Table, row: int) -> Figure:
    """Draw one image: the original, the blurred and reconstructed image at every level, and the losses.

    clean: the original `(H, W, C)`, in gray levels.
    degraded, restored: the image at every level `(T, H, W, C)`, in gray levels.
    """
    T = len(table.levels)
    figure = Figure(figsize=(1.35 * (T + 1), 4.6), layout="constrained")
    subfigures: Any = figure.subfigures(2, 1, height_ratios=[2.1, 1])
    images, curve = subfigures
    axes: Any = images.subplots(2, T + 1)

    def show(axis, image, title=""):
        axis.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])

    show(axes[0, 0], clean, "original")
    axes[1, 0].set_visible(False)
    best = int(np.argmin(table.losses[row]))
    for t in range(T):
        chosen = " (best)" if t == best else ""
        show(axes[0, t + 1], degraded[t], f"sigma {table.sigmas[t]:g}{chosen}")
        show(axes[1, t + 1], restored[t], f"{table.losses[row, t]:.4f}")
    axes[0, 1].set_ylabel("blurred", fontsize=8)
    axes[1, 1].set_ylabel("restored", fontsize=8)
    below = curve.subplots()
    below.plot(table.sigmas, table.losses[row], marker="o", ms=4)
    below.plot(table.sigmas[best], table.losses[row, best], "o", ms=9, mfc="none", color="tab:red")
    below.set_xlabel("sigma", fontsize=8)
    below.set_ylabel("error", fontsize=8)
    below.tick_params(labelsize=8)
    return figure
