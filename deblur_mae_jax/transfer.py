"""What a downstream run takes from the network it starts from: degradation, sizes, weights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from deblur_mae_jax import pretrained, workdir
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.network import check_fit, kind, num_axes

# Field: its value when there is nothing to inherit from (ViT-B/16 on clean gray images).
INHERITED: dict[str, Any] = {
    "image_size": 224,
    "task.degrade": "none",
    "task.blur_site": "native",
    "model.variant": "B",
    "model.patch_size": 16,
    "model.in_chans": 1,
    "model.embed_dim": 0,
    "model.depth": 0,
    "model.num_heads": 0,
    "model.conditioning": "none",
    "model.level_code": "learned",
    "data.mean": (),
    "data.std": (),
    "data.max_side": 1024,
    "data.bits16": "minmax",
    "data.gray_target": False,
}
# The same for volumes. Windows and spacing are of the images, not of the network.
INHERITED_3D: dict[str, Any] = {
    "image_size": 96,
    "model.variant": "48",
    "model.feature_size": 0,
    "model.depths": (),
    "model.num_heads": (),
    "model.in_chans": 1,
    "model.patch_embed": "conv",
    "model.merge_order": "monai15",
}
# In the workdir: the network a run started from, so that it needs nothing outside its own folder.
SOURCE = "pretrained"
WEIGHTS = "weights.safetensors"
EXPORTED = "searcher.safetensors"  # the same beside an exported classifier


def get(config: ConfigDict, name: str, missing: Any = None) -> Any:
    """A field by its dotted name; `missing` where there is none."""
    node = config
    for part in name.split("."):
        if part not in node:
            return missing
        node = node[part]
    return node


def put(config: ConfigDict, name: str, value: Any) -> None:
    """Set a field by its dotted name."""
    *parts, leaf = name.split(".")
    node = config
    for part in parts:
        node = node[part]
    node[leaf] = value


def _is_unset(name: str, value: Any) -> bool:
    if name == "data.gray_target":  # a flag has no value that means unset: it is always inherited
        return True
    if name == "data.max_side":  # 0 means never
        return value == -1
    return value in ("inherit", 0, ())


def inherits(config: ConfigDict) -> bool:
    """Whether this kind of run stands on a trained network: transfer, segmentation, probes, a blur search."""
    return "select" in config


def resolve(
    config: ConfigDict, folder: Path | None = None
) -> tuple[ConfigDict, pretrained.Pretrained | None, list[str]]:
    """Fill in what `config` inherits from `config.init_from`.

    folder: the workdir; a copy of the source that an earlier start left there is used before the
    source itself. A pre-training run takes weights and inherits nothing. Returns the config, the source (or
    `None`) and lines that say what was inherited and what the user chose otherwise.
    """
    source = None
    if not inherits(config):
        going_on = folder is not None and workdir.is_started(folder)  # its checkpoint has it all
        if config.init_from and not going_on:
            source = pretrained.load(config.init_from)
        return config, source, [] if source is None else list(source.notes)
    copy = folder / SOURCE / WEIGHTS if folder is not None and workdir.is_started(folder) else None
    if copy is not None and copy.exists():
        source = pretrained.load(copy)
    elif config.init_from:
        source = pretrained.load(config.init_from)
    if kind(config):
        check_fit(config)
    axes = num_axes(config)
    if source is not None and num_axes(source.config) != axes:
        kinds = {2: "pictures", 3: "volumes"}
        raise UserError(
            f"config.init_from: '{config.init_from}' is a network for {kinds[5 - axes]}, this config is for "
            f"{kinds[axes]}"
        )
    config = ConfigDict(config.to_dict(), type_safe=False)
    inherited = INHERITED if axes == 2 else INHERITED_3D
    taken, other = [], []
    for name, default in inherited.items():
        value = get(config, name)
        # A run of an earlier version may lack a field that was added since.
        offered = default if source is None else get(source.config, name, default)
        if _is_unset(name, value):
            put(config, name, offered)
            if source is not None and offered != default:
                taken.append(f"{name}={offered}")
        elif source is not None and value != offered:
            other.append(f"{name}={value} (the checkpoint has {offered})")
    lines = [] if source is None else list(source.notes)
    if source is not None and source.format == "mae" and source.config.task.degrade == "none":
        lines.append(
            "the file does not say what its images were degraded with, so not at all; for a DeblurringMIM "
            "checkpoint add --config.task.degrade='blur.gaussian(sigma=1.1)'"
        )
    if axes == 2 and source is not None and config.model.in_chans != source.config.model.in_chans:
        for name in ("mean", "std"):  # of other channels than the images have now
            if config.data[name] == source.config.data[name]:
                config.data[name] = ()
    if source is None and axes == 3:
        lines.append(
            f"config.init_from is not set: from scratch, Swin-UNETR {config.model.variant} wide, cubes of "
            f"{config.image_size} voxels"
        )
    elif source is None:
        size = (
            config.model.variant if not config.model.embed_dim else f"{config.model.embed_dim} wide"
        )
        lines.append(
            f"config.init_from is not set: from scratch, ViT-{size} with patches of {config.model.patch_size} at "
            f"{config.image_size} pixels, degradation {config.task.degrade}"
        )
    else:
        lines.append(f"inherited from {config.init_from}: {', '.join(taken) or 'the defaults'}")
    if other:
        lines.append(f"overridden: {', '.join(other)}")
    return config, source, lines


def copy_of_source(path: Path) -> Path | None:
    """The weights of the network that the classifier at `path` started from, where they were kept."""
    folder = path if path.is_dir() else path.parent
    places = (folder / SOURCE / WEIGHTS, folder / EXPORTED)
    return next((place for place in places if place.exists()), None)


def keep_copy(folder: Path, source: pretrained.Pretrained) -> None:
    """Copy what a later start, or a prediction, needs of the source. All processes call this."""
    place = folder / SOURCE
    if jax.process_index() == 0 and not workdir.is_started(folder):
        place.mkdir(exist_ok=True)
        from deblur_mae_jax.data import audit  # takes a second to import

        seen = audit.hashes_of_run(source.path)
        if seen is not None:
            workdir.write_json(place / audit.IMAGES_FILE, seen)
        draft = place / f"{WEIGHTS}.tmp"
        pretrained.save_file(draft, source)
        os.replace(draft, place / WEIGHTS)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("copy of the source")


def require_source(source: pretrained.Pretrained | None, what: str) -> pretrained.Pretrained:
    """The source, or a `UserError` that says it is needed."""
    if source is None:
        raise UserError(
            f"config.init_from is not set: {what} needs a pre-trained network, the workdir of a run"
        )
    return source
