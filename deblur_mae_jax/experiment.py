"""A training run, built from its config: images, network, order, store, optimiser, step."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deblur_mae_jax import (
    dataset,
    optim,
    sharding,
    steps,
    stores,
    supervised,
    warm_start,
    workdir,
)
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.loader import Loader
from deblur_mae_jax.data.nifti import MODALITIES
from deblur_mae_jax.data.order import Order
from deblur_mae_jax.dataset import Progress
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.network import (
    Network,
    build_network,
    check_fit,
    is_supervised,
    num_axes,
    task_module,
)
from deblur_mae_jax.supervised import Supervision

OPTIMIZERS = ("adamw", "lars")


def _require(field: str, value: Any, ok: bool, rule: str) -> None:
    if not ok:
        raise UserError(f"config.{field}={value!r} must be {rule}")


def check(config: ConfigDict) -> None:
    """Everything that can be known to be wrong before any data is read. Raises `UserError`."""
    c, o = config, config.optim
    check_fit(config)
    _require("image_size", c.image_size, c.image_size >= 16, "at least 16 pixels")
    _require("optim.batch_size", o.batch_size, o.batch_size >= 1, "at least 1")
    _require("optim.accum_steps", o.accum_steps, o.accum_steps >= 1, "at least 1")
    _require("optim.epochs", o.epochs, o.epochs > 0 or o.steps > 0, "greater than 0")
    _require("optim.base_lr", o.base_lr, o.base_lr > 0, "greater than 0")
    _require("optim.weight_decay", o.weight_decay, o.weight_decay >= 0, "0 or greater")
    _require("optim.clip_norm", o.clip_norm, o.clip_norm >= 0, "0 (off) or greater")
    for name in ("b1", "b2"):
        _require(f"optim.{name}", o[name], 0 <= o[name] < 1, "in [0, 1)")
    _require("model.in_chans", c.model.in_chans, c.model.in_chans in (1, 3), "1 or 3")
    bad = c.data.max_bad_fraction
    _require("data.max_bad_fraction", bad, 0 <= bad < 1, "in [0, 1)")
    if o.name not in OPTIMIZERS:
        raise unknown("config.optim.name", o.name, OPTIMIZERS)
    share = jax.device_count() * o.accum_steps
    if o.batch_size % share:
        near = max(share, round(o.batch_size / share) * share)
        raise UserError(
            f"config.optim.batch_size={o.batch_size} is not divisible by {jax.device_count()} "
            f"device(s) x config.optim.accum_steps={o.accum_steps}; try {near}"
        )
    if num_axes(config) == 2:
        _check_views(config)


def _check_views(c: ConfigDict) -> None:
    """The part of `check` that is about pictures."""
    low, high = c.data.crop_scale
    _require("data.crop_scale", (low, high), 0 < low <= high <= 1, "(low, high) within (0, 1]")
    low, high = c.data.crop_ratio
    _require("data.crop_ratio", (low, high), 0 < low <= high, "(low, high), greater than 0")
    if c.task.blur_site not in ("native", "network"):
        raise unknown("config.task.blur_site", c.task.blur_site, ("native", "network"))
    for name in ("mean", "std"):
        values = c.data[name]
        if values and len(values) not in (1, c.model.in_chans):
            raise UserError(
                f"config.data.{name}={tuple(values)} must have one value, or one for each of "
                f"config.model.in_chans={c.model.in_chans} channels"
            )


def schedule_lengths(config: ConfigDict, steps_per_epoch: float) -> tuple[int, float]:
    """(total steps, warm-up epochs) of a run."""
    o = config.optim
    if o.steps:
        epochs = o.steps / steps_per_epoch
        warmup = o.get("warmup_steps", 0) / steps_per_epoch or o.warmup_epochs
        return o.steps, min(warmup, 0.1 * epochs)
    _require(
        "optim.warmup_epochs", o.warmup_epochs, 0 <= o.warmup_epochs < o.epochs,
        f"at least 0 and less than config.optim.epochs={o.epochs:g}",
    )  # fmt: skip
    return max(1, math.ceil(o.epochs * steps_per_epoch)), o.warmup_epochs


def build_optimizer(
    config: ConfigDict, schedule: optim.Schedule, depth: int
) -> optax.GradientTransformationExtraArgs:
    """What `config.optim` asks for, on the parameters that the task trains."""
    o, module = config.optim, task_module(config)
    if o.name == "lars":
        tx = optim.lars(schedule, weight_decay=o.weight_decay, clip_norm=o.clip_norm)
    else:
        tx = optim.adamw(
            schedule,
            b1=o.b1,
            b2=o.b2,
            eps=o.eps,
            weight_decay=o.weight_decay,
            clip_norm=o.clip_norm,
            decay_on=o.get("decay_on", "weights_and_tokens"),
            layer_decay=o.get("layer_decay", 1.0),
            depth=depth,
        )
    if hasattr(module, "trained"):
        return optim.only(tx, module.trained(config.task.frozen))
    return tx


@dataclasses.dataclass
class Experiment:
    """A run, ready to start."""

    config: ConfigDict
    mesh: Mesh
    network: Network
    index: data_index.Index
    loader: Loader
    order: Order
    store: stores.Resident | stores.Streaming
    arrays: Any  # what stays on the devices: images, and the network of an online search
    total_steps: int
    train_step: Any  # jitted: (state, arrays, batch) -> (state, metrics)
    make_state: Callable[[], steps.TrainState]
    source: Any = None  # the run it starts from
    supervision: Supervision | None = None
    choose_level: Any = None  # the search inside the step: params -> inputs.ChooseLevel
    notes: list[str] = dataclasses.field(default_factory=list)  # for the user, at the start

    @property
    def steps_per_epoch(self) -> float:
        """May be below one for tiny sets."""
        return self.order.steps_per_epoch

    def every(self, epochs: float) -> int:
        """A number of epochs in whole steps, at least one."""
        return max(1, round(epochs * self.steps_per_epoch))


def modality_of(index: data_index.Index) -> dict[str, np.ndarray]:
    """`modality` `(N,)`, numbers, of the images that have one; as a `Loader` takes it."""
    if index.source.modalities is None:
        return {}
    numbers = [MODALITIES.index(name) for name in index.source.modalities]
    return {"modality": np.array(numbers, np.int32)}


def _order(config: ConfigDict, index: data_index.Index) -> Order:
    """Every image once an epoch, or the modalities in the stated ratio."""
    text, modalities = config.data.get("ratio", ""), index.source.modalities
    if not text:
        return Order(len(index), config.optim.batch_size, config.seed)
    present = sorted(set(modalities or []))
    try:
        pairs = [part.split("=") for part in text.split(",")]
        shares = {name.strip(): float(share) for name, share in pairs}
    except ValueError:
        shares = {}
    if sorted(shares) != present or not all(share > 0 for share in shares.values()):
        example = ",".join(f"{name}=1" for name in present or MODALITIES)
        raise UserError(
            f"config.data.ratio='{text}' must give every modality of the data a number above 0, such as {example}"
        )
    labels = np.array(modalities)
    seed, batch = config.seed, config.optim.batch_size
    return Order(len(index), batch, seed, labels=labels, shares=shares)


def build(
    config: ConfigDict,
    folder: Path | None,
    progress: Progress | None = None,
    source: Any = None,
    search_progress: Progress | None = None,
) -> Experiment:
    """Check the config, index the images, build the steps. Raises `UserError`.

    source: the trained network it starts from (`transfer.resolve`).
    """
    check(config)
    mesh = sharding.make_mesh()
    supervision, extras = None, {}
    if is_supervised(config):
        index, supervision = supervised.prepare(
            config, folder, source, mesh, progress, search_progress
        )
        weights = supervised.class_weights(config, supervision)
        network = build_network(config, len(supervision.classes), weights)
        order = supervised.train_order(config, supervision)
        if supervision.mask_values is None:
            extras["label"] = supervision.labels
        if supervision.levels is not None:
            extras["level"] = supervision.levels
    else:
        network = build_network(config)
        index = dataset.build_index(config, folder, progress=progress)
        order = _order(config, index)
        extras |= modality_of(index)
    if folder is not None:
        workdir.check_data(folder, index.fingerprint, len(index))
    total_steps, warmup = schedule_lengths(config, order.steps_per_epoch)
    o = config.optim
    lr = o.base_lr * (o.batch_size / 256 if o.get("scale_lr", True) else 1.0)
    epochs = total_steps / order.steps_per_epoch

    def schedule(step):
        if o.get("schedule", "cosine") == "timm":
            warm = warmup * order.steps_per_epoch
            return optim.timm_learning_rate(step, lr, o.min_lr, o.warmup_lr, warm, total_steps)
        if o.get("schedule", "cosine") == "by_epoch":
            epoch = jnp.floor(step / order.steps_per_epoch)
            return optim.monai_learning_rate(epoch, lr, o.min_lr, warmup, epochs)
        if o.get("schedule", "cosine") == "constant":
            epoch = jnp.minimum(step / order.steps_per_epoch, warmup)
            return optim.mae_learning_rate(epoch, lr, lr, warmup, epochs)
        return optim.mae_learning_rate(step / order.steps_per_epoch, lr, o.min_lr, warmup, epochs)

    tx = build_optimizer(config, schedule, getattr(network.model, "depth", 0))
    parts = None if supervision is None else supervision.parts
    mask_classes = None if supervision is None else supervision.mask_classes
    loader = Loader(index, config.model.in_chans, extras, parts, mask_classes)
    store = stores.make(
        config.data.store,
        loader,
        order,
        mesh,
        o.accum_steps,
        network.inputs.precompute if network.inputs.precomputes else None,
        config.data.num_threads,
        config.data.num_workers,
    )
    arrays = {"images": store.arrays}
    choose = None
    if supervision is not None and supervision.setting and supervision.setting.kind == "online":
        arrays["search"] = jax.device_put(source.params, sharding.replicated(mesh))
        choose = supervised.online(config, supervision.setting, source, network)

    def prepare(arrays, part, keys):
        at = choose(arrays["search"]) if choose is not None else None
        return network.inputs.train(store.gather(arrays["images"], part), keys, at)

    train_step = steps.make_train_step(prepare, network.loss, tx, schedule, config.seed)
    taken: Any = {}
    lines = [] if supervision is None else supervision.lines
    if source is not None:
        shapes = jax.eval_shape(network.init)
        classes = None if supervision is None else supervision.classes
        part = config.get("init_parts", "both")
        found = warm_start.fit(source, shapes, network, config.init_strict, classes, part)
        taken = found.params
        lines = [*lines, *found.table(source)]

    def initial_state(taken):
        return steps.create_state(steps.merged(network.init(), taken), tx)

    make_state = jax.jit(initial_state, out_shardings=sharding.replicated(mesh))
    logging.info("%d steps, %.1f per epoch", total_steps, order.steps_per_epoch)
    return Experiment(
        config,
        mesh,
        network,
        index,
        loader,
        order,
        store,
        arrays,
        total_steps,
        jax.jit(train_step, donate_argnums=0),
        lambda: make_state(taken),
        source,
        supervision,
        choose,
        lines,
    )
