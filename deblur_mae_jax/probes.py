"""Quick probes of frozen features: nearest neighbours and logistic regression (scikit-learn)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from deblur_mae_jax import api, blur_search, sharding, supervised, transfer, workdir
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.evaluators import classification, classification_report
from deblur_mae_jax.evaluators import predictions as tables
from deblur_mae_jax.progress import Progress

KINDS = ("knn", "logistic")
CHUNK = 256


def candidates(kind: str, config: ConfigDict, train: int) -> dict[str, Any]:
    """The classifiers to choose from on the validation images, by name."""
    if kind == "knn":
        return {
            f"k = {k}": make_pipeline(
                Normalizer(),  # then Euclidean neighbours are those of the cosine
                KNeighborsClassifier(k, weights="distance"),
            )
            for k in config.probe.neighbours
            if k <= train
        }
    return {
        f"C = {c:g}": make_pipeline(
            StandardScaler(),
            LogisticRegression(
                C=c,
                max_iter=2000,
                class_weight="balanced" if config.data.balance != "none" else None,
            ),
        )
        for c in config.probe.strengths
    }


def run(config: ConfigDict, workdir_path: str | Path, dry_run: bool = False) -> dict[str, Any]:
    """Encode the images of all splits once, fit on training, choose on validation, judge on test.

    The images are degraded as the network of `config.init_from` was trained, a D2MAE network's at the
    level that the blur search finds. Returns the numbers of `metrics.json`. Raises `UserError`.
    """
    if dry_run:
        raise UserError("--dry_run: a probe trains no network; run it on a few images instead")
    folder, say = Path(workdir_path), Progress()
    config, source, lines = transfer.resolve(config)
    trained = transfer.require_source(source, "a probe")
    if config.probe.kind not in KINDS:
        raise unknown("config.probe.kind", config.probe.kind, KINDS)
    if jax.process_count() > 1:
        raise UserError("a probe runs on one process")
    workdir.claim(folder, config)
    transfer.keep_copy(folder, trained)
    index, known = supervised.prepare(
        config,
        folder,
        trained,
        sharding.make_mesh(),
        lambda done, total: say.show(f"checking images: {done} of {total}"),
        lambda done, total: say.show(f"blur search: {done} of {total} images"),
    )
    if known.setting is not None and known.levels is None:
        raise UserError(
            f"config.search.setting={config.search.setting} needs training; choices for a probe: auto, "
            "none, fixed(sigma), search(step), random"
        )
    workdir.check_data(folder, index.fingerprint, len(index))
    data_index.write_skipped(folder / "skipped.csv", index.skipped)
    for line in [*lines, *known.lines]:
        say.say(line)
    network = api.of(trained)
    features = []
    for start in range(0, len(index), CHUNK):
        part = range(start, min(start + CHUNK, len(index)))
        levels = None if known.levels is None else known.levels[start : part.stop]
        images = [index.source.read(i) for i in part]
        if trained.network.inputs.degradation.num_levels and levels is None:
            levels = np.ones(len(images), np.int32)
        features.append(api.encode(network, images, level=levels, pool=config.probe.pool))
        say.show(f"encoding: {part.stop} of {len(index)} images")
    x = np.concatenate(features).astype(np.float64)
    train, val = known.positions["train"], known.positions["val"]
    best: tuple[float, str, Any] | None = None
    for name, model in candidates(config.probe.kind, config, len(train)).items():
        model.fit(x[train], known.labels[train])
        p = probabilities(model, x[val], len(known.classes))
        score = classification.METRICS[config.select.metric](known.labels[val], p)
        score = score if classification.HIGHER_IS_BETTER[config.select.metric] else -score
        if best is None or score > best[0]:
            best = (score, name, model)
    if best is None:
        raise UserError(
            f"config.probe.neighbours={tuple(config.probe.neighbours)}: all above the {len(train)} "
            "training images"
        )
    _, chosen, model = best
    known.lines.append(f"{config.probe.kind} on frozen features: {chosen}, chosen on validation")
    table = tables.concatenate(
        [
            tables.of_index(
                index,
                known,
                name,
                probabilities(model, x[known.positions[name]], len(known.classes)),
                known.levels,
                blur_search.all_sigmas(trained.network.inputs.degradation),
            )
            for name in ("val", "test")
            if name in known.positions
        ]
    )
    shown = known.positions.get("test", val)
    notes = classification_report.Notes(
        title=f"{folder.resolve().name}: {config.probe.kind} on frozen features",
        config=workdir.flat(config),
        lines=[*lines, *known.lines],
        setting=known.setting.kind if known.setting else None,
        best_step=None,
        curves=[],
        features=x[shown],
        mistakes=[],
        train_counts=np.bincount(known.labels[train], minlength=len(known.classes)),
        skipped=len(index.skipped),
    )
    numbers = classification_report.write(folder, table, index, known.positions, notes)
    judged = numbers["splits"][numbers["judged_on"]]["per_image"]
    say.say(f"{config.probe.kind}, {chosen}, judged on {numbers['judged_on']}")
    for name, entry in judged.items():
        if entry["value"] is not None:
            say.say(f"  {name.replace('_', ' '):32s} {entry['value']:.4f}")
    say.say(f"report      {folder / 'report' / 'index.html'}")
    return numbers


def probabilities(model: Any, x: np.ndarray, num_classes: int) -> np.ndarray:
    """`(N, num_classes)`, zero for classes that no training image has."""
    out = np.zeros((len(x), num_classes))
    out[:, model.classes_] = model.predict_proba(x)
    return out
