"""`--inspect`: print what a run would train on, and show it on contact sheets, without training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax import network as networks
from deblur_mae_jax.config import copy
from deblur_mae_jax.data import buckets, dataset, privacy, summary
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.index import Index, Unusable
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.reports import inspection
from deblur_mae_jax.training import supervision
from deblur_mae_jax.training.progress import Progress

FOLDER = "inspection"


def run(config: ConfigDict, workdir: str | Path = "") -> Path:
    """Print the table of the data set that `config` names, and write its page. Returns the path of the page.

    workdir: the page is written to its folder `inspection`; "": to `inspection` in the current folder.
    Raises `UserError`, after the table, for what would stop the run.
    """
    progress = Progress()
    target = buckets.Output(f"{workdir}/{FOLDER}" if workdir else FOLDER, "--workdir")
    folder = target.path
    config, _, _ = inherit.resolve(config)
    identity = networks.identify(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir: cannot write to '{folder}': {error.strerror}") from error
    privacy.use(folder.parent if workdir else None)
    show = progress.counters()[0]
    problem: UserError | None = None
    rows: dict[str, np.ndarray] = {}
    supervised = identity.supervised or (not identity.kind and config.task.name == "probe")
    if supervised:
        try:
            index, labels = supervision.divided(config, identity, progress=show)
            classes = labels.classes if labels.mask_values is not None else ()
            table = summary.rows(index, indices=labels.indices, mask_classes=classes, notes=labels.lines)
            for split, numbers in labels.indices.items():
                for name, members in _by_class(index, numbers, labels.mask_values is not None):
                    rows[f"{split}\n{name}" if name else split] = members
        except UserError as error:
            problem = error
    if not rows:
        try:
            index = _everything(config, problem, show) if supervised else _usual(config, show)
        except UserError as error:
            if supervised:
                raise
            problem = error
            index = _everything(config, problem, show)
        if isinstance(problem, Unusable):
            known = {item.name for item in index.skipped}
            index.skipped.extend(item for item in problem.skipped if item.name not in known)
        table = summary.rows(index)
        splits = index.source.splits or [""] * len(index)
        for split in dict.fromkeys(splits):
            numbers = np.array([i for i, own in enumerate(splits) if own == split])
            for name, members in _by_class(index, numbers, False):
                rows["\n".join(filter(None, [split, name])) or "images"] = members
    for line in summary.lines(table):
        progress.print(line)
    data_index.write_skipped(folder / "skipped.csv", index.skipped)
    if problem is not None:
        target.send()
        raise problem
    path = inspection.write(folder, f"{config.data.root or config.data.name}: inspection", table, index, rows)
    target.send()
    progress.print(f"contact sheets {target.shown(path)}")
    return path


def _usual(config: ConfigDict, show) -> Index:
    """The index of the images of a run without labels, whatever part of them cannot be read."""
    return dataset.build_index(copy(config, {"data.max_bad_fraction": 1.0}), progress=show, check="pixels")


def _everything(config: ConfigDict, problem: UserError | None, show) -> Index:
    """The index of the images of all splits, whatever part of them cannot be read."""
    splits = "train" if config.data.name == "tfds_source" else "all"
    try:
        source = dataset.load_source(config, splits)
        lenient = copy(config, {"data.max_bad_fraction": 1.0})
        return dataset.build_index(lenient, source=source, progress=show, check="pixels")
    except UserError as error:
        raise problem or error from error


def _by_class(index: Index, numbers: np.ndarray, segments: bool):
    labels = index.source.labels
    if segments or labels is None:
        return [("", numbers)]
    names = sorted({labels[i] for i in numbers})
    return [(name, np.array([i for i in numbers if labels[i] == name])) for name in names]
