"""Judge the frozen features of a network on labelled images while it is pre-trained.

A fixed part of the labelled images fits nearest neighbours and a linear probe, the rest judges them. Their network
inputs are prepared once. A judgement that would take more than a share of the run's time is left out; the first never
is.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax import config as fields
from deblur_mae_jax import network as networks
from deblur_mae_jax import sharding
from deblur_mae_jax.data.loader import Loader
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline.keys import evaluation_keys
from deblur_mae_jax.metrics import classification, probes
from deblur_mae_jax.training import supervision
from deblur_mae_jax.training.experiment import Experiment
from deblur_mae_jax.training.progress import Progress

# Images that are prepared and encoded at once.
BATCH = 32
NEIGHBOURS, STRENGTH = 20, 0.01
PROBES: dict[str, Callable[[int], Any]] = {
    "knn": lambda count: probes.nearest(min(NEIGHBOURS, count)),
    "linear": lambda count: probes.linear(STRENGTH, balanced=True),
}
MEASURES = ("balanced_accuracy", "auroc")


class Monitor:
    """The labelled images of `config.report.monitor_root`, as network inputs with their classes."""

    def __init__(self, run: Experiment):
        self.run, self.began, self.spent, self.last = run, time.monotonic(), 0.0, 0.0
        self.judgements = 0
        started = time.monotonic()
        config = run.config
        labelled = _config_of(config)
        try:
            index, labels = supervision.divided(labelled, networks.identify(labelled))
        except UserError as error:
            raise UserError(f"config.report.monitor_root='{config.report.monitor_root}': {error}") from error
        self.classes = labels.classes
        judged = np.concatenate([numbers for name, numbers in labels.indices.items() if name != "train"])
        most = config.report.monitor_images
        self.train = _some(labels.indices["train"], labels.labels, round(0.6 * most))
        self.judged = _some(judged, labels.labels, most - round(0.6 * most))
        self.labels = {
            name: labels.labels[numbers] for name, numbers in (("train", self.train), ("judged", self.judged))
        }
        loader = Loader(index, config.model.in_chans)
        self.inputs = self._prepare(loader, [*self.train, *self.judged])
        self._encode = jax.jit(self._features, out_shardings=sharding.replicated(run.mesh))
        self.spent += time.monotonic() - started
        if jax.process_index() == 0:
            counted = f"{len(self.train)} images fit the probes, {len(self.judged)} judge them"
            counted += "" if index.source.groups else "; their patients are unknown"
            skipped = f"; {len(index.skipped)} cannot be used" if index.skipped else ""
            Progress().print(f"monitored  {config.report.monitor_root}: {', '.join(self.classes)}; {counted}{skipped}")

    def _prepare(self, loader: Loader, numbers: list[int]) -> np.ndarray:
        """The central views as the network gets them `(N, H, W, C)`, at the weakest of its blur levels."""
        network, parts = self.run.network, []

        def prepare(examples: Any, start: Any) -> jax.Array:
            count = examples["size"].shape[0]
            level = jnp.ones(count, jnp.int32) if network.inputs.degradation.num_levels else None
            return network.inputs.evaluate(examples, evaluation_keys(start + jnp.arange(count)), level)["inputs"]

        program = jax.jit(prepare)
        for start in range(0, len(numbers), BATCH):
            examples = [loader.example(int(n)) for n in numbers[start : start + BATCH]]
            short = BATCH - len(examples)
            stacked = {k: np.stack([e[k] for e in [*examples, *examples[:1] * short]]) for k in examples[0]}
            parts.append(np.asarray(program(stacked, np.int32(start)))[: len(examples)])
        return np.concatenate(parts)

    def _features(self, params: Any, images: jax.Array) -> jax.Array:
        model = self.run.network.model
        level = jnp.ones(len(images), jnp.int32)
        return model.apply({"params": params}, images, level=level, method=model.features)

    def due(self) -> bool:
        """Whether another judgement keeps within the share of the time. All processes get the same answer."""
        allowed = self.run.config.report.monitor_share * (time.monotonic() - self.began)
        due = self.last == 0 or self.spent + self.last <= allowed
        if jax.process_count() > 1:
            from jax.experimental import multihost_utils

            due = bool(multihost_utils.broadcast_one_to_all(np.bool_(due)))
        return due

    @property
    def described(self) -> str:
        """How often it judged since the last start, and its share of the time."""
        share = self.spent / max(time.monotonic() - self.began, 1e-9)
        return f"{self.judgements} judgements of the features, {share:.1%} of the time since the last start"

    def judge(self, params: Any) -> dict[str, float]:
        """The measures of both probes by name, or {} if they would take too long."""
        if not self.due():
            return {}
        started = time.monotonic()
        parts = []
        for start in range(0, len(self.inputs), BATCH):
            part = self.inputs[start : start + BATCH]
            full = np.concatenate([part, np.repeat(part[:1], BATCH - len(part), axis=0)])
            parts.append(np.asarray(self._encode(params, full))[: len(part)])
        features = np.concatenate(parts).astype(np.float64)
        out = {}
        fit, rest = features[: len(self.train)], features[len(self.train) :]
        for name, make in PROBES.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # collapsed features do not converge
                model = make(len(fit)).fit(fit, self.labels["train"])
            p = probes.probabilities(model, rest, len(self.classes))
            for measure in MEASURES:
                out[f"{name}_{measure}"] = float(classification.METRICS[measure](self.labels["judged"], p))
        self.last = time.monotonic() - started
        self.spent += self.last
        self.judgements += 1
        return {name: value for name, value in out.items() if np.isfinite(value)}


def make(run: Experiment) -> Monitor | None:
    """The monitor of a run, or None if it names no labelled images. Raises `UserError`."""
    report = run.config.report
    if not report.monitor_root:
        return None
    if report.monitor_images < 10:
        raise UserError(f"config.report.monitor_images={report.monitor_images} must be at least 10")
    if not 0 < report.monitor_share <= 1:
        raise UserError(f"config.report.monitor_share={report.monitor_share} must be above 0 and at most 1")
    return Monitor(run)


def _config_of(config: ConfigDict) -> ConfigDict:
    """A config of the labelled images, read as the images of the run are."""
    root, own = str(config.report.monitor_root), fields.flat(config)
    name = "manifest" if root.lower().endswith(".csv") else "image_folder"
    same = {
        f"data.{key}": config.data[key]
        for key in (
            *(name for name in fields.DECODING if f"data.{name}" in own),
            "mean",
            "std",
            "frames",
            "columns",
            "group_pattern",
            "labels",
            "allow_burned_in",
        )
    }
    return fields.copy(fields.on_organ(fields.finetuning(), "folder"), {
        **{k: v for k, v in fields.without_source(2).items()}, **same, "image_size": config.image_size,
        "data.name": name, "data.root": root,
        "model.in_chans": config.model.in_chans,
    })  # fmt: skip


def _some(numbers: np.ndarray, labels: np.ndarray, most: int) -> np.ndarray:
    """About so many of these at most, at least one of every class, the same in every start."""
    if len(numbers) <= most:
        return numbers
    rng, chosen = np.random.default_rng(0), []
    for label in np.unique(labels[numbers]):
        own = numbers[labels[numbers] == label]
        chosen.append(rng.permutation(own)[: max(1, most * len(own) // len(numbers))])
    return np.sort(np.concatenate(chosen))
