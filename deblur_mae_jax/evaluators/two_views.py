"""Measure contrastive learning on two fixed views of a fixed set of images, and draw them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from PIL import Image

from deblur_mae_jax.evaluators.image_reconstruction import Arrays
from deblur_mae_jax.input_pipeline.keys import evaluation_keys
from deblur_mae_jax.metrics import representation
from deblur_mae_jax.network import Network
from deblur_mae_jax.reports import page

COLUMNS = {"clean": "image", "first": "first view", "second": "second view"}


def make(network: Network) -> Callable[[Any, Any], dict[str, jax.Array]]:
    """Return `evaluate(params, examples) -> arrays`, a function for `jax.jit`.

    loss, accuracy: `(B,)`, of two views that never change, as in training.
    features: `(B, D)`, of the encoder for the central view.
    clean, first, second: gray levels `(B, H, W, C)` of the central view and of the two views.
    """
    inputs, model, task = network.inputs, network.model, network.task

    def evaluate(params, examples):
        count = examples["size"].shape[0]
        keys = evaluation_keys(jnp.arange(count))
        views = inputs.train(examples, keys)
        per_image, out = task.loss(params, views, keys)
        clean = inputs.evaluate(examples, keys)["targets"]
        level = jnp.ones(count, jnp.int32) if network.conditioned else None
        return {
            "loss": per_image,
            "accuracy": out["accuracy"],
            "features": model.apply({"params": params}, clean, level=level, method=model.features),
            "clean": inputs.gray_levels(clean),
            "first": inputs.gray_levels(views["inputs"]),
            "second": inputs.gray_levels(views["other_targets"]),
        }

    return evaluate


def summary(arrays: Arrays) -> dict[str, float]:
    """Means over the images, and the signs of a collapse."""
    means = {f"eval_{name}": float(arrays[name].mean()) for name in ("loss", "accuracy")}
    return means | representation.measures(arrays["features"])


def by_level(arrays: Arrays, degradation: Any) -> list[dict[str, float]]:
    """Return an empty list, because the views of an image may have different levels."""
    return []


def sheet(arrays: Arrays, count: int, names: list[str], degradation: Any) -> Image.Image:
    """The first images and their views."""
    count = min(count, len(arrays["clean"]))
    rows = [[arrays[name][i] for name in COLUMNS] for i in range(count)]
    return page.sheet(rows, list(COLUMNS.values()), [Path(names[i]).stem[:16] for i in range(count)])
