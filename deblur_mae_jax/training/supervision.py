"""Classes, splits, blur levels and class balance of a run with labels."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax.data import dataset, splits
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.order import Order
from deblur_mae_jax.degradations import parse
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.inference import blur_search
from deblur_mae_jax.network import Identity, Network
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.training import stop

MAX_CLASSES = 64
Progress = Callable[[int, int], None]


@dataclasses.dataclass
class Supervision:
    """Classes, splits and blur levels of a run with labels.

    classes: class names; for a segmentation the background is the first.
    labels: `(N,)`, the class number of every image of the index.
    indices: image numbers of each split.
    lines: lines for the user that describe how the splits were made.
    setting: how the blur level of an image is found; None if the degradation has no levels.
    levels: `(N,)`, the blur level of every image; None if it is not known before training.
    table: results of the blur search.
    mask_values: for a segmentation, the value of each class in the mask files.
    """

    classes: list[str]
    labels: np.ndarray
    indices: dict[str, np.ndarray]
    lines: list[str]
    setting: blur_search.Setting | None = None
    levels: np.ndarray | None = None
    table: blur_search.Table | None = None
    mask_values: list[int] | None = None

    @property
    def mask_classes(self) -> np.ndarray | None:
        """Lookup table `(256,)` uint8 from mask-file value to class."""
        if self.mask_values is None:
            return None
        out = np.zeros(256, np.uint8)
        out[self.mask_values] = np.arange(len(self.mask_values))
        return out

    @property
    def searches_online(self) -> bool:
        """Whether the blur level is searched inside the step."""
        return self.setting is not None and self.setting.kind == "online"

    @property
    def split_numbers(self) -> np.ndarray:
        """The split number of every image `(N,)`; -1 for an image in no split."""
        out = np.full(len(self.labels), -1)
        for number, indices in enumerate(self.indices.values()):
            out[indices] = number
        return out


def prepare(
    config: ConfigDict,
    identity: Identity,
    source: TrainedNetwork | None,
    mesh: jax.sharding.Mesh,
    cache: Path | None = None,
    progress: Sequence[Progress | None] = (None, None),
) -> tuple[data_index.Index, Supervision]:
    """Index the images of all splits and determine their blur levels. Raises `UserError`.

    identity: identity of the run, or of a probe.
    source: the network that the run starts from; it may be used to search the levels.
    cache: JSON file that stores the index.
    progress: called while the images are checked and during the search.
    """
    setting = _setting(config, identity, source)
    index, supervision = divided(config, identity, cache, progress[0])
    if setting is None:
        return index, supervision
    supervision.setting = setting
    why = ""
    if setting.kind == "none" and source is None:
        why = ": there is no pre-training network to search with"
    elif setting.kind == "none" and source is not None and not source.network.can_search:
        why = ": the network of config.init_from cannot search"
    degradation = parse.degradation(config.task.degrade)
    value = f" {setting.value:g}" if setting.value else ""
    if setting.kind == "none":
        value = f" (level 1, sigma {blur_search.all_sigmas(degradation)[0]:g})"
    supervision.lines.append(f"blur of the images: {setting.kind}{value}{why}")

    def show(done: int, total: int) -> None:
        stop.poll()
        if progress[1] is not None:
            progress[1](done, total)

    def run_search(step: int) -> blur_search.Table:
        assert source is not None
        return blur_search.search(
            source,
            index,
            mesh,
            step=step,
            high_pass=config.search.high_pass,
            batch_size=config.search.batch_size,
            cache=config.search.cache,
            num_threads=config.data.num_threads,
            show=show,
        )

    supervision.levels, supervision.table = blur_search.assign(
        setting, degradation, len(index), config.seed, run_search
    )
    return index, supervision


def divided(
    config: ConfigDict, identity: Identity, cache: Path | None = None, progress: Progress | None = None
) -> tuple[data_index.Index, Supervision]:
    """Index the images of all splits, with their classes. Raises `UserError`.

    cache: JSON file that stores the index.
    progress: called while the images are checked.
    """
    by_mask = identity.kind == "segment"
    labelled = splits.labelled(lambda split: dataset.load_source(config, split), config.data, by_mask)
    if config.select.metric == "f1_binary" and len(labelled.classes) != 2:
        raise UserError(
            f"config.select.metric=f1_binary needs two classes; there are {len(labelled.classes)}: use f1_macro"
        )
    # A prediction must belong to the image it names, so every pixel is read whatever the value of config.data.check.
    index = dataset.build_index(config, cache, source=labelled.source, progress=progress, check="pixels", masks=by_mask)
    supervision, index = _divide(config, labelled, index, by_mask)
    return index, supervision


def _setting(config: ConfigDict, identity: Identity, source: TrainedNetwork | None) -> blur_search.Setting | None:
    """How the blur level of an image is found; None for volumes."""
    if identity.axes == 3:
        return None
    degradation = parse.degradation(config.task.degrade)
    can_search = source is not None and source.network.can_search
    blur_search.check_high_pass(config.search.high_pass)
    setting = blur_search.parse(config.search.setting, degradation, can_search)
    if setting is not None and setting.kind in ("search", "online"):
        assert source is not None
        _require_same_levels(config, degradation, source)
    return setting


def _divide(
    config: ConfigDict, labelled: splits.Labelled, index: data_index.Index, by_mask: bool
) -> tuple[Supervision, data_index.Index]:
    """Index the usable images with their labels and splits; the fingerprint of the index includes both."""
    row_of = {name: i for i, name in enumerate(labelled.source.names)}
    split = labelled.split[np.array([row_of[name] for name in index.source.names])]
    names = np.array(index.source.labels)
    labels = np.array([labelled.classes.index(name) for name in names], np.int32)
    indices = {name: np.flatnonzero(split == name) for name in splits.SPLITS}
    indices = {name: numbers for name, numbers in indices.items() if len(numbers)}
    splits.require(labelled.classes, labels, indices, config.data)
    lines = list(labelled.lines)
    classes, values = labelled.classes, None
    if by_mask:
        classes, values = _classes_of_masks(config, index, indices)
    else:
        lines += splits.missing_classes(classes, labels, indices)
    if config.data.fraction != 1:
        train = indices["train"]
        held = [index.mask_values[i] for i in train] if by_mask else ()
        share = splits.fraction(labels[train], config.data.fraction, config.data.split_seed, held)
        indices["train"] = train[share]
        lines.append(f"{len(share)} of {len(train)} training images (config.data.fraction)")
    groups = index.source.groups or [""] * len(index)
    keys = index.source.keys or index.source.names
    # Names of DICOM patients depend on the key of the workdir, which others of the processes may not share.
    number = {group: str(i) for i, group in enumerate(dict.fromkeys(groups))}
    known = _with_labels(index.fingerprint, keys, names, split, [number[group] for group in groups])
    # Version 0.1 took the names, and knew no patients of volumes in folders.
    before = (
        (index.earlier, index.source.names, [""] * len(index)) if index.earlier else (index.fingerprint, keys, groups)
    )
    earlier = _with_labels(before[0], before[1], names, split, before[2])
    index = dataclasses.replace(index, fingerprint=known, earlier=earlier)
    return Supervision(classes, labels, indices, lines, mask_values=values), index


def _with_labels(fingerprint: str, *columns: Iterable[str]) -> str:
    """The fingerprint of images with their classes, splits and patients."""
    digest = hashlib.sha256(fingerprint.encode())
    for row in zip(*columns, strict=True):
        digest.update("\0".join(row).encode())
    return digest.hexdigest()[:16]


def _classes_of_masks(
    config: ConfigDict, index: data_index.Index, indices: dict[str, np.ndarray]
) -> tuple[list[str], list[int]]:
    """Return the class names, background first, and the value of each class in the mask files."""
    values = sorted({0}.union(*(set(v) for v in index.mask_values)))
    _refuse_soft_masks(config, index)
    if len(values) > MAX_CLASSES:
        raise UserError(
            f"config.data.root: the masks hold {len(values)} different values; a mask has one whole number per class. "
            "A mask that was saved as JPEG has lost its values: save it as PNG"
        )
    if values == [0, 1, 255] and not config.data.label_names and index.source.mask_names is None:
        both = next((i for i, own in enumerate(index.mask_values) if {1, 255} <= set(own)), None)
        if both is None:
            one = next(i for i, own in enumerate(index.mask_values) if 1 in own)
            raise UserError(
                f"config.data.root: some masks hold 0 and 255, others 0 and 1, such as that of "
                f"'{index.source.names[one]}'. If both mean the same, add --config.data.mask_values='1+255=lesion'; if "
                "not, name the two classes in config.data.label_names"
            )
    if len(values) == 1:
        raise UserError("config.data.root: all masks are empty; there is nothing to segment")
    learnt = {0}.union(*(set(index.mask_values[i]) for i in indices["train"]))
    absent = [v for v in values if v not in learnt]
    if absent:
        raise UserError(
            f"config.data.split={config.data.split}: no training mask holds the value {absent[0]}, but masks of "
            "the other splits do"
        )
    names = list(config.data.label_names)
    if index.source.mask_names is not None:
        if names:
            raise UserError(
                "config.data.label_names: the classes have their names from config.data.mask_values already"
            )
        names = [index.source.mask_names[v - 1] for v in values[1:]]
    if not names:
        numbers = [1] if len(values) == 2 else values[1:]
        names = [f"label {v}" for v in numbers]
    if len(names) != len(values) - 1 or len(set(names)) < len(names):
        raise UserError(
            f"config.data.label_names={tuple(names)} must be {len(values) - 1} different names, one for each of the "
            f"values {', '.join(str(v) for v in values[1:])} of the masks"
        )
    return ["background", *names], values


def _refuse_soft_masks(config: ConfigDict, index: data_index.Index) -> None:
    """Raise `UserError` if masks have values that only occur on the edges of regions. Such masks are smoothed.

    Labels of volumes may be thin everywhere, as an adrenal gland in thick slices: there most values must be soft.
    """
    if config.data.label_names or index.source.mask_names is not None:
        return  # the user knows the values
    edges = {value: i for i in reversed(range(len(index))) for value in index.edge_values[i] if value}
    inside = set().union(*(set(v) - set(e) for v, e in zip(index.mask_values, index.edge_values, strict=True)))
    top = max(inside, default=0)
    soft = {value: i for value, i in edges.items() if value not in inside and 0 < value < top}
    thin = len(soft) < len(inside - {0}) and len(index.canvas) == 3
    if not soft or thin:
        return
    value, first = min(soft.items(), key=lambda pair: pair[1])
    raise UserError(
        f"config.data.root: {len(soft)} values of the masks, such as {value} in the mask of "
        f"'{index.source.names[first]}', only occur between regions, so the masks have soft edges. Threshold them, or "
        "name ranges of values: config.data.mask_values='0-127=background,128-255=lesion'. If they are classes of "
        "their own, name all classes in config.data.label_names"
    )


def _require_same_levels(config: ConfigDict, degradation: Any, source: TrainedNetwork) -> None:
    """Raise `UserError` if a level has a different sigma than in the training of the searching network."""
    before = source.network.inputs.degradation
    if not np.array_equal(blur_search.all_sigmas(degradation), blur_search.all_sigmas(before)):
        raise UserError(
            f"config.task.degrade='{config.task.degrade}' has other levels than the network of "
            f"config.init_from, trained with '{source.config.task.degrade}', which searches them; use "
            "config.search.setting=none, fixed(sigma) or random with it"
        )


def class_weights(config: ConfigDict, supervision: Supervision) -> tuple[float, ...]:
    """Weight of each class in the loss, 1 on average over the training images; () if classes are not weighted."""
    if supervision.mask_values is not None or config.data.balance != "loss":
        return ()
    train = supervision.labels[supervision.indices["train"]]
    counts = np.bincount(train, minlength=len(supervision.classes))
    return tuple((len(train) / (len(counts) * np.maximum(counts, 1))).tolist())


def train_order(config: ConfigDict, supervision: Supervision) -> Order:
    """The order of the training images, balanced if the config asks for it, with several crops of each per epoch."""
    train = supervision.indices["train"]
    if supervision.mask_values is not None:
        train = np.repeat(train, config.data.crops_per_image)
        return Order(len(train), config.optim.batch_size, config.seed, train)
    labels = supervision.labels[train] if config.data.balance == "sampling" else None
    return Order(len(train), config.optim.batch_size, config.seed, train, labels)


def online(labels: Supervision, source: TrainedNetwork, network: Network, high_pass: float = 0.0) -> Any:
    """The search inside the step, on the view used for training (exactly as in Algorithm 1).

    high_pass: as in `blur_search.make_losses`.
    """
    assert labels.setting is not None
    before = source.network
    levels = blur_search.candidates(before.inputs.degradation.num_levels, labels.setting.step)
    if before.inputs.out != network.inputs.out:
        raise UserError(
            f"config.search.setting=online needs config.image_size={before.inputs.image_size}, the "
            f"size the network of config.init_from was trained at, not {network.inputs.image_size}"
        )
    return blur_search.make_choose_level(before.model, network.inputs, levels, before.task.norm_pix_loss, high_pass)
