"""Quick probes of frozen features: nearest neighbours and logistic regression (scikit-learn)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax import api, sharding
from deblur_mae_jax import network as networks
from deblur_mae_jax.commands import new_images
from deblur_mae_jax.config import flat, without_effect
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.index import Index
from deblur_mae_jax.data.source import Skipped
from deblur_mae_jax.degradations import parse
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.inference import blur_search
from deblur_mae_jax.metrics import classification, probes
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.reports import classification as report
from deblur_mae_jax.reports import predictions
from deblur_mae_jax.training import checks, supervision
from deblur_mae_jax.training.progress import Progress
from deblur_mae_jax.training.supervision import Supervision
from deblur_mae_jax.workdir import lock, run_folder
from deblur_mae_jax.workdir.run_folder import Workdir

KINDS = ("knn", "logistic")
POOLS = ("mean", "cls")


def candidates(kind: str, config: ConfigDict, train: int) -> dict[str, Any]:
    """The classifiers to choose from on the validation images, by name."""
    if kind == "knn":
        return {f"k = {k}": probes.nearest(k) for k in config.probe.neighbours if k <= train}
    balanced = config.data.balance != "none"
    return {f"C = {c:g}": probes.linear(c, balanced) for c in config.probe.strengths}


def run(config: ConfigDict, workdir: str | Path, dry_run: bool = False) -> dict[str, Any]:
    """Encode all images once, fit on the training split, choose on validation, and evaluate on the test split.

    The images are degraded as in the training of the network of `config.init_from`; a D2MAE network uses the
    level that the blur search finds. Returns the numbers of `metrics.json`. Raises `UserError`.
    """
    if dry_run:
        raise UserError("--dry_run: a probe trains no network; run it on a few images instead")
    folder = Workdir(workdir)
    with lock.hold(folder):
        return _probe(config, folder)


def _probe(config: ConfigDict, folder: Workdir) -> dict[str, Any]:
    progress = Progress()
    config, source, lines = inherit.resolve(config)
    trained = inherit.require_source(source, "a probe")
    identity = networks.identify(config)
    checks.check_labels(config, identity)
    if config.probe.kind not in KINDS:
        raise unknown("config.probe.kind", config.probe.kind, KINDS)
    if jax.process_count() > 1:
        raise UserError("a probe runs on one process")
    _check_choices(config)
    if config.probe.pool != "mean" and trained.network.kind != "reconstruct":
        lines.append(f"config.probe.pool={config.probe.pool} is not used: the features are the input of the head")
    run_folder.claim(folder, config)
    inherit.keep_copy(folder, trained)
    index, labels = supervision.prepare(
        config,
        identity,
        trained,
        sharding.make_mesh(),
        folder.index(),
        progress.counters(),
    )
    if labels.setting is not None and labels.levels is None:
        raise UserError(
            f"config.search.setting={config.search.setting} needs training; choices for a probe: auto, "
            "none, fixed(sigma), search(step), random"
        )
    run_folder.check_data(folder, index.fingerprint, len(index), index.earlier)
    data_index.write_skipped(folder.skipped, index.skipped)
    lines += [*labels.lines, *without_effect(config)]
    for line in lines:
        progress.print(line)
    features = _features(trained, index, labels, config.probe.pool, progress)
    chosen, model = _choose(config, labels, features)
    lines.append(f"{config.probe.kind} on frozen features: {chosen}, chosen on validation")
    numbers = _judge(config, folder, (index, labels, lines), features, model)
    progress.print(f"{config.probe.kind}, {chosen}, judged on {numbers['judged_on']}")
    for name, entry in numbers["splits"][numbers["judged_on"]]["per_image"].items():
        if entry["value"] is not None:
            low, high = entry.get("low"), entry.get("high")
            interval = f"  (95 %: {low:.4f} to {high:.4f})" if low is not None else ""
            progress.print(f"  {name.replace('_', ' '):32s} {entry['value']:.4f}{interval}")
    progress.print(report.verdict(numbers))
    progress.print(f"report      {folder.shown(folder.page)}")
    return numbers


def _check_choices(config: ConfigDict) -> None:
    """Raise `UserError` for values of `config.probe` that no classifier can have."""
    if config.probe.pool not in POOLS:
        raise unknown("config.probe.pool", config.probe.pool, POOLS)
    name = "neighbours" if config.probe.kind == "knn" else "strengths"
    values = tuple(config.probe[name])
    if not values or not all(value > 0 for value in values):
        raise UserError(f"config.probe.{name}={values} must be numbers greater than 0, such as (1, 5)")
    if config.probe.kind == "knn" and config.data.balance != "none":
        raise UserError(f"config.data.balance={config.data.balance} is not for config.probe.kind=knn")


def _features(trained: TrainedNetwork, index: Index, labels: Supervision, pool: str, progress: Progress) -> np.ndarray:
    """Features `(N, D)` float64 of all images."""
    network = trained.with_params(jax.tree.map(jax.numpy.asarray, trained.params))
    features = []
    lost: list[Skipped] = []
    for numbers, images in new_images.chunks(index, lost):
        _refuse(lost)
        levels = None
        if labels.levels is not None:
            levels = labels.levels[numbers]
        elif trained.network.inputs.degradation.num_levels:
            levels = np.ones(len(images), np.int32)
        features.append(api.encode(network, images, level=levels, pool=pool))
        progress.update(f"encoding: {numbers[-1] + 1} of {len(index)} images")
    _refuse(lost)
    return np.concatenate(features).astype(np.float64)


def _refuse(lost: list[Skipped]) -> None:
    """Raise `UserError` if an image is lost: the features of the others would stand in the wrong rows."""
    if lost:
        raise UserError(f"config.data.root: '{lost[0].name}' can no longer be read: {lost[0].reason}")


def _choose(config: ConfigDict, labels: Supervision, x: np.ndarray) -> tuple[str, Any]:
    """Return the name and the fitted classifier that is best on the validation images."""
    train, val = labels.indices["train"], labels.indices["val"]
    best: tuple[float, str, Any] | None = None
    for name, model in candidates(config.probe.kind, config, len(train)).items():
        model.fit(x[train], labels.labels[train])
        p = probes.probabilities(model, x[val], len(labels.classes))
        score = classification.METRICS[config.select.metric](labels.labels[val], p)
        if np.isnan(score):
            raise UserError(
                f"config.select.metric={config.select.metric} is not defined on the validation images, which may lack "
                "a class; choose another one, such as accuracy"
            )
        score = score if classification.HIGHER_IS_BETTER[config.select.metric] else -score
        if best is None or score > best[0]:
            best = (score, name, model)
    if best is None:
        raise UserError(
            f"config.probe.neighbours={tuple(config.probe.neighbours)}: all above the {len(train)} training images"
        )
    return best[1], best[2]


def _judge(
    config: ConfigDict,
    workdir: Workdir,
    run: tuple[Index, Supervision, list[str]],
    x: np.ndarray,
    model: Any,
) -> dict[str, Any]:
    """Predict validation and test images and write the report.

    run: images, labels and lines for the page.
    """
    index, labels, lines = run
    indices = labels.indices
    sigmas = blur_search.all_sigmas(parse.degradation(config.task.degrade))
    tables = [
        predictions.of_index(
            index,
            labels,
            name,
            probes.probabilities(model, x[indices[name]], len(labels.classes)),
            labels.levels,
            sigmas,
        )
        for name in ("val", "test")
        if name in indices
    ]
    train = labels.labels[indices["train"]]
    notes = report.Notes(
        title=f"{workdir.name}: {config.probe.kind} on frozen features",
        config=flat(config),
        lines=lines,
        best_step=None,
        curves=[],
        skipped=len(index.skipped),
        setting=labels.setting.kind if labels.setting else None,
        drawn=np.arange(len(indices.get("test", indices["val"]))),
        features=x[indices.get("test", indices["val"])],
        mistakes=[],
        train_counts=np.bincount(train, minlength=len(labels.classes)),
    )
    return report.write(workdir, predictions.concatenate(tables), index, indices, notes)
