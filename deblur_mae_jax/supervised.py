"""What a run with labels is made of beyond its images: classes, splits, levels of blur, balance."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax import blur_search, dataset, lookup, sliding_window
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data import splits
from deblur_mae_jax.data.order import Order
from deblur_mae_jax.dataset import Progress
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.network import kind

BALANCE = ("none", "sampling", "loss")
MAX_CLASSES = 64


@dataclasses.dataclass
class Supervision:
    """What a run with labels knows beyond its images. positions: of each split in the index."""

    classes: list[str]
    labels: np.ndarray
    positions: dict[str, np.ndarray]
    lines: list[str]
    setting: blur_search.Setting | None = None
    levels: np.ndarray | None = None
    table: blur_search.Table | None = None
    mask_values: list[int] | None = None  # in the mask files, of each class of a segmentation

    @property
    def mask_classes(self) -> np.ndarray | None:
        """The class of every value of a mask file `(256,)` uint8."""
        if self.mask_values is None:
            return None
        out = np.zeros(256, np.uint8)
        out[self.mask_values] = np.arange(len(self.mask_values))
        return out

    @property
    def parts(self) -> np.ndarray:
        """A number for the split of every image, -1 for those that take no part."""
        out = np.full(len(self.labels), -1)
        for number, positions in enumerate(self.positions.values()):
            out[positions] = number
        return out


def prepare(
    config: ConfigDict,
    folder: Path | None,
    source: Any,
    mesh: jax.sharding.Mesh,
    progress: Progress | None = None,
    search_progress: Progress | None = None,
) -> tuple[data_index.Index, Supervision]:
    """Index the images of all splits, and settle their levels of blur. Raises `UserError`."""
    by_mask = kind(config) == "segment"
    _check(config, by_mask)
    degradation = lookup.degradation(config.task.degrade)
    can_search = source is not None and hasattr(source.network.model, "decode")
    setting = None
    if "search" in config:
        setting = blur_search.parse(config.search.setting, degradation, can_search)
    if setting is not None and setting.kind in ("search", "online"):
        _require_same_levels(config, degradation, source)
    found = splits.labelled(lambda split: dataset.load_source(config, split), config.data, by_mask)
    if config.select.metric == "f1_binary" and len(found.classes) != 2:
        raise UserError(
            f"config.select.metric=f1_binary needs two classes; there are {len(found.classes)}: use f1_macro"
        )
    # A prediction must be of the image it names, so every pixel is read whatever config.data.check says.
    index = dataset.build_index(
        config, folder, source=found.source, progress=progress, check="pixels", masks=by_mask
    )
    where = {name: i for i, name in enumerate(found.source.names)}
    kept = found.split[np.array([where[name] for name in index.source.names])]
    names = np.array(index.source.labels)
    labels = np.array([found.classes.index(name) for name in names], np.int32)
    positions = {name: np.flatnonzero(kept == name) for name in splits.SPLITS}
    positions = {name: part for name, part in positions.items() if len(part)}
    splits.require(found.classes, labels, positions, config.data)
    lines = list(found.lines)
    classes, values = found.classes, None
    if by_mask:
        classes, values = _classes_of_masks(config, index, positions)
    else:
        lines += splits.missing_classes(classes, labels, positions)
    if config.data.fraction != 1:
        train = positions["train"]
        share = splits.fraction(labels[train], config.data.fraction, config.data.split_seed)
        positions["train"] = train[share]
        lines.append(f"{len(share)} of {len(train)} training images (config.data.fraction)")
    digest = hashlib.sha256(index.fingerprint.encode())
    groups = index.source.groups or [""] * len(index)
    for row in zip(index.source.names, names, kept, groups, strict=True):
        digest.update("\0".join(row).encode())
    index = dataclasses.replace(index, fingerprint=digest.hexdigest()[:16])
    if setting is not None:
        why = (
            ""
            if can_search or setting.kind != "none"
            else ": there is no pre-training network to search with"
        )
        lines.append(
            f"blur of the images: {setting.kind}{f' {setting.value:g}' if setting.value else ''}{why}"
        )
    supervision = Supervision(classes, labels, positions, lines, setting, mask_values=values)
    if setting is not None:

        def run_search(step: int) -> blur_search.Table:
            return blur_search.search(
                source,
                index,
                mesh,
                step=step,
                batch_size=config.search.batch_size,
                cache=config.search.cache,
                num_threads=config.data.num_threads,
                show=search_progress,
            )

        supervision.levels, supervision.table = blur_search.assign(
            setting, degradation, len(index), config.seed, run_search
        )
    return index, supervision


def _check(config: ConfigDict, by_mask: bool) -> None:
    """What can be known to be wrong before any image is read."""
    # Here, not above: scikit-learn takes a second at the start of every run.
    from deblur_mae_jax.evaluators import classification, segmentation

    measures: Any = segmentation.MEASURES if by_mask else classification.METRICS
    if config.select.metric not in measures:
        raise unknown("config.select.metric", config.select.metric, measures)
    if by_mask:
        segmentation.check(config.report.tolerance, config.report.empty)
        sliding_window.check(config.infer.overlap, config.infer.blending)
        crops = config.data.crops_per_image
        if crops < 1:
            raise UserError(f"config.data.crops_per_image={crops} must be at least 1")
        setting = config.search.setting if "search" in config else "auto"
        if not setting.startswith(("auto", "none", "search", "fixed", "random")):
            raise UserError(
                f"config.search.setting={setting} is for classifiers. Choices: auto, none, search(step), "
                "fixed(sigma), random"
            )
    elif config.data.balance not in BALANCE:
        raise unknown("config.data.balance", config.data.balance, BALANCE)


def _classes_of_masks(
    config: ConfigDict, index: data_index.Index, positions: dict[str, np.ndarray]
) -> tuple[list[str], list[int]]:
    """(names of the classes, background first; the value of each in the mask files)."""
    values = sorted({0}.union(*(set(v) for v in index.mask_values)))
    if len(values) > MAX_CLASSES:
        raise UserError(
            f"config.data.root: the masks hold {len(values)} different values; a mask has one whole number per class. "
            "A mask that was saved as JPEG has lost its values: save it as PNG"
        )
    if len(values) == 1:
        raise UserError("config.data.root: the masks are all empty: nothing to segment")
    learnt = {0}.union(*(set(index.mask_values[i]) for i in positions["train"]))
    absent = [v for v in values if v not in learnt]
    if absent:
        raise UserError(
            f"config.data.split={config.data.split}: no training mask holds the value {absent[0]}, which those of the "
            "other splits do"
        )
    names = list(config.data.label_names)
    if not names:
        numbers = [1] if len(values) == 2 else values[1:]
        names = [f"label {v}" for v in numbers]
    if len(names) != len(values) - 1 or len(set(names)) < len(names):
        raise UserError(
            f"config.data.label_names={tuple(names)} must be {len(values) - 1} different names, one for each of the "
            f"values {', '.join(str(v) for v in values[1:])} of the masks"
        )
    return ["background", *names], values


def _require_same_levels(config: ConfigDict, degradation: Any, source: Any) -> None:
    """Raise `UserError` where a level means another sigma than the searching network learnt."""
    before = source.network.inputs.degradation
    if not np.array_equal(blur_search.all_sigmas(degradation), blur_search.all_sigmas(before)):
        raise UserError(
            f"config.task.degrade='{config.task.degrade}' has other levels than the network of "
            f"config.init_from, trained with '{source.config.task.degrade}', which searches them; use "
            "config.search.setting=none, fixed(sigma) or random with it"
        )


def class_weights(config: ConfigDict, supervision: Supervision) -> tuple[float, ...]:
    """Weight of each class in the loss, 1 on average over the training images; () for none."""
    if supervision.mask_values is not None or config.data.balance != "loss":
        return ()
    train = supervision.labels[supervision.positions["train"]]
    counts = np.bincount(train, minlength=len(supervision.classes))
    return tuple((len(train) / (len(counts) * np.maximum(counts, 1))).tolist())


def train_order(config: ConfigDict, supervision: Supervision) -> Order:
    """The order of the training images, balanced where the config says so; several crops of each in an epoch."""
    train = supervision.positions["train"]
    if supervision.mask_values is not None:
        train = np.repeat(train, config.data.crops_per_image)
        return Order(len(train), config.optim.batch_size, config.seed, train)
    labels = supervision.labels[train] if config.data.balance == "sampling" else None
    return Order(len(train), config.optim.batch_size, config.seed, train, labels)


def online(config: ConfigDict, setting: blur_search.Setting, source: Any, network: Any) -> Any:
    """The search inside the step, on the view that is trained on (Algorithm 1 to the letter)."""
    before = source.network
    levels = blur_search.candidates(before.inputs.degradation.num_levels, setting.step)
    if before.inputs.image_size != network.inputs.image_size:
        raise UserError(
            f"config.search.setting=online needs config.image_size={before.inputs.image_size}, the "
            f"size the network of config.init_from was trained at, not {network.inputs.image_size}"
        )
    return blur_search.make_choose_level(
        before.model, network.inputs, levels, source.config.task.norm_pix_loss
    )
