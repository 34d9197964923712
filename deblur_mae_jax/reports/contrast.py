"""Curves and meanings for the page of a contrastive pre-training."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from deblur_mae_jax.reports import reconstruction

MEANING = {
    "eval_loss": "loss on the evaluation images",
    "eval_accuracy": "share of the views that identify the other view of their image among all evaluation images",
    **reconstruction.FEATURES,
}


def figure(lines: list[dict[str, Any]]) -> Figure:
    """Loss, accuracy of the contrast, and the signs of a collapse against the step."""
    drawing = Figure(figsize=(10, 3.2), layout="constrained")
    left, middle, right = drawing.subplots(1, 3)
    reconstruction.curve(left, lines, "loss", lw=0.8, color="tab:blue")
    reconstruction.curve(left, lines, "eval_loss", marker="o", ms=3, color="tab:orange")
    left.set(title="loss", xlabel="step")
    reconstruction.curve(middle, lines, "eval_accuracy", marker="o", ms=3, color="tab:red")
    middle.set(title="identified views", xlabel="step", ylim=(0, 1))
    reconstruction.curve(right, lines, "feature_spread", marker="o", ms=3, color="tab:green")
    right.set(title="spread of the features", xlabel="step", ylim=(0, None))
    reconstruction.finish(left, middle, right)
    return drawing


LOOK = reconstruction.Look(figure, MEANING, "Views")
