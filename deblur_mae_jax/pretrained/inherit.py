"""Inherit degradation, sizes and normalisation of a downstream run from its pre-trained network."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from deblur_mae_jax import config as fields
from deblur_mae_jax import network as networks
from deblur_mae_jax import sides
from deblur_mae_jax.data import buckets
from deblur_mae_jax.data.index import hashes_of_index
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pretrained import trained_network
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.weight_formats import files
from deblur_mae_jax.workdir import run_folder
from deblur_mae_jax.workdir.run_folder import Workdir


def resolve(config: ConfigDict, workdir: Workdir | None = None) -> tuple[ConfigDict, TrainedNetwork | None, list[str]]:
    """Fill in the unset fields of `config` from the network of `config.init_from`.

    Returns the config, the network (or `None`), and lines that list the inherited fields and the fields that the user
    overrides. A pre-training run takes only weights and inherits no fields.

    workdir: if an earlier start saved a copy of the network in this folder, the copy is used.
    """
    identity = networks.identify(config)
    started = workdir is not None and workdir.has_checkpoint()
    if not identity.starts_from_pretrained:
        # A run with its own checkpoint already has all its weights.
        source = trained_network.load(config.init_from) if config.init_from and not started else None
        lines = [] if source is None else list(source.notes)
        if config.init_from and started:
            lines = [f"config.init_from={config.init_from} is not read: the run goes on from its own checkpoint"]
        return _filled(config, {}), source, lines
    source = None
    if workdir is not None and started and workdir.pretrained_weights.exists():
        source = trained_network.load(workdir.pretrained_weights)
        _refuse_other_weights(config.init_from, workdir, source)
    elif config.init_from:
        source = trained_network.load(config.init_from)
    if identity.kind:
        networks.check(config)
    axes = identity.axes
    if source is not None and source.network.axes != axes:
        theirs, ours = networks.IMAGES[source.network.axes], networks.IMAGES[axes]
        raise UserError(f"config.init_from: '{config.init_from}' is a network for {theirs}, this config is for {ours}")
    defaults = fields.without_source(axes)
    # A run of an earlier version may lack a field that was added later.
    offered = defaults if source is None else _offered(defaults, source)
    before = fields.flat(config)
    taken = [f"{name}={value}" for name, value in offered.items()
             if before.get(name, "") is None and value != defaults.get(name)]  # fmt: skip
    changed = [n for n in defaults if before.get(n) is not None and before[n] != _plain(offered[n])]
    other = [f"{name}={before[name]} (the checkpoint has {offered[name]})" for name in changed]
    if source is not None and changed and not identity.kind:
        # How a file becomes 8 bits is a matter of this run alone.
        stated = {name: before[name] for name in changed if name != "data.bits16"}
        source = _as_stated(source, config.init_from, stated, other) if stated else source
    config = _filled(config, offered)
    if source is None:
        return config, None, [_from_scratch(config, axes)]
    lines = list(source.notes)
    if source.format == "mae" and source.config.task.degrade == "none":
        lines.append(
            "the file does not record the degradation of its training images; we assume none. For a DeblurringMIM "
            "checkpoint add --config.task.degrade='blur.gaussian(sigma=1.1)'"
        )
    if axes == 2 and config.model.in_chans != source.config.model.in_chans:
        for name in ("mean", "std"):  # the checkpoint has a different number of channels
            if config.data[name] == source.config.data[name]:
                config.data[name] = ()
    lines.append(f"inherited from {config.init_from}: {', '.join(taken) or 'the defaults'}")
    if other:
        lines.append(f"overridden: {', '.join(other)}")
    return config, source, lines


def _as_stated(source: TrainedNetwork, path: str, stated: dict[str, Any], other: list[str]) -> TrainedNetwork:
    """The network of the weight file at `path` with what the user states of it, for a run that uses it as it is.

    Raises `UserError` for a run of ours, which records how its network was trained.
    """
    if not files.is_weights(source.path):
        raise UserError(
            f"config.init_from: '{path}' is a run, and its network is used as it was trained: {', '.join(other)} "
            "cannot be changed here"
        )
    return trained_network.load(path, known={name.rpartition(".")[2]: value for name, value in stated.items()})


def _refuse_other_weights(init_from: str, workdir: Workdir, copy: TrainedNetwork) -> None:
    """Raise `UserError` if `config.init_from` was changed to other weights since the run started."""
    before = json.loads(workdir.config.read_text()).get("init_from") if workdir.config.exists() else init_from
    there = buckets.is_address(init_from) or Path(init_from).expanduser().exists()
    if init_from == before or not init_from or not there:
        return  # the network may have been moved or deleted
    if trained_network.load(init_from).weights_hash != copy.weights_hash:
        raise UserError(
            f"config.init_from: '{init_from}' holds other weights than '{before}', from which the run in "
            f"'{workdir.shown()}' started. Use another workdir"
        )


def _offered(defaults: dict[str, Any], source: TrainedNetwork) -> dict[str, Any]:
    """Values of the source for every field that can be unset: the fields of `defaults` and of the model."""
    theirs = {
        name: tuple(value) if isinstance(value, list) else value for name, value in fields.flat(source.config).items()
    }
    model = {name: value for name, value in theirs.items() if name.startswith("model.")}
    return {name: theirs.get(name, value) for name, value in defaults.items()} | model


def _filled(config: ConfigDict, values: dict[str, Any]) -> ConfigDict:
    """A copy of `config` with `values` in the fields that are unset."""
    unset = {k for k, v in fields.flat(config).items() if v is None}
    return fields.copy(config, {k: v for k, v in values.items() if k in unset})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _from_scratch(config: ConfigDict, axes: int) -> str:
    model, start = config.model, "config.init_from is not set, so this starts without pre-training: "
    if axes == 3:
        return f"{start}{model.name}, variant {model.variant}, crops of {sides.written(config.image_size)} voxels"
    values = model.to_dict()
    size = [f"{n}={values[n]}" for n in ("variant", "width", "depths", "embed_dim", "patch_size") if values.get(n)]
    at = f"at {sides.written(config.image_size)} pixels, degradation {config.task.degrade}"
    slow = jax.default_backend() == "cpu" and values.get("variant") in ("B", "L", "H")
    hint = (
        ". This takes hours on a CPU. Add --config.init_from=RUN to fine-tune a pre-trained network; "
        "configs/from_scratch.py:small trains a small one without"
        if slow
        else ""
    )
    if fields.flat(config).get("task.frozen"):
        hint = ". config.task.frozen=True trains the head alone, here on the features of a random network" + hint
    return f"{start}{model.name} ({', '.join(size)}) {at}{hint}"


def keep_copy(workdir: Workdir, source: TrainedNetwork) -> None:
    """Save the parts of the source that a later start or a prediction needs. All processes call this."""
    if jax.process_index() == 0 and not workdir.has_checkpoint():
        with run_folder.writing(workdir):
            workdir.pretrained.mkdir(exist_ok=True)
            seen = hashes_of_index(Workdir(source.path).index())
            workdir.pretrained_images.unlink(missing_ok=True)  # of another source, in a start that failed
            if seen is not None:
                run_folder.write_json(workdir.pretrained_images, seen)
            draft = workdir.pretrained_weights.with_suffix(".tmp")
            trained_network.save_file(draft, source)
            os.replace(draft, workdir.pretrained_weights)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices("copy of the source")


def require_source(source: TrainedNetwork | None, what: str) -> TrainedNetwork:
    """Return the source. Raises `UserError` if there is none."""
    if source is None:
        raise UserError(f"config.init_from is not set: {what} needs a pre-trained network, the workdir of a run")
    return source
