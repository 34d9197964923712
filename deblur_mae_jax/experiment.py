"""Everything a run is made of, built from its config: data, model, task, optimiser, steps."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deblur_mae_jax import inputs, lookup, optim, sharding, steps, stores, workdir
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.loader import Loader
from deblur_mae_jax.data.order import Order
from deblur_mae_jax.errors import UserError, unknown

IMAGENET = {1: ((0.449,), (0.226,)), 3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}
Progress = Callable[[int, int], None]


def _require(field: str, value: Any, ok: bool, rule: str) -> None:
    if not ok:
        raise UserError(f"config.{field}={value!r} must be {rule}")


def check(config: ConfigDict) -> None:
    """Everything that can be known to be wrong before any data is read. Raises `UserError`."""
    c, o = config, config.optim
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
    low, high = c.data.crop_scale
    _require("data.crop_scale", (low, high), 0 < low <= high <= 1, "(low, high) within (0, 1]")
    low, high = c.data.crop_ratio
    _require("data.crop_ratio", (low, high), 0 < low <= high, "(low, high), greater than 0")
    bad = c.data.max_bad_fraction
    _require("data.max_bad_fraction", bad, 0 <= bad < 1, "in [0, 1)")
    if c.task.blur_site not in ("native", "network"):
        raise unknown("config.task.blur_site", c.task.blur_site, ("native", "network"))
    if o.name != "adamw":
        raise unknown("config.optim.name", o.name, ("adamw",))
    share = jax.device_count() * o.accum_steps
    if o.batch_size % share:
        near = max(share, round(o.batch_size / share) * share)
        raise UserError(
            f"config.optim.batch_size={o.batch_size} is not divisible by {jax.device_count()} "
            f"device(s) x config.optim.accum_steps={o.accum_steps}; try {near}"
        )
    for name in ("mean", "std"):
        values = c.data[name]
        if values and len(values) not in (1, c.model.in_chans):
            raise UserError(
                f"config.data.{name}={tuple(values)} must have one value, or one for each of "
                f"config.model.in_chans={c.model.in_chans} channels"
            )


@dataclasses.dataclass
class Network:
    """Model, task and input path; no data."""

    model: Any
    loss: Any
    inputs: inputs.Inputs
    init: Callable[[], Any]
    flops_per_image: float


def build_network(config: ConfigDict) -> Network:
    """The parts of a run that need no images. Raises `UserError`."""
    degradation = lookup.degradation(config.task.degrade)
    if 2 not in degradation.ndim:
        raise UserError(
            f"config.task.degrade='{config.task.degrade}' is not defined for 2-D images"
        )
    settings = config.model.to_dict()
    factory = lookup.function("models", settings.pop("name"), "Model", "config.model.name")
    if settings["conditioning"] != "none" and not degradation.num_levels:
        raise UserError(
            f"config.model.conditioning={settings['conditioning']} needs a degradation with levels, "
            f"such as blur.gaussian_levels; config.task.degrade='{config.task.degrade}' has none. "
            "Choices: none, or another degradation"
        )
    if settings["dtype"] == "auto":
        settings["dtype"] = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    model = factory(image_size=config.image_size, num_levels=degradation.num_levels, **settings)

    task = config.task.to_dict()
    make_task = lookup.function("tasks", task.pop("name"), "make", "config.task.name")
    accepted = inspect.signature(make_task).parameters
    loss = make_task(model, **{k: v for k, v in task.items() if k in accepted})

    data, channels = config.data, config.model.in_chans
    mean, std = IMAGENET[channels]
    network_inputs = inputs.Inputs(
        degradation,
        image_size=config.image_size,
        in_chans=channels,
        blur_site=config.task.blur_site,
        mean=tuple(data.mean) or mean,
        std=tuple(data.std) or std,
        crop_scale=tuple(data.crop_scale),
        crop_ratio=tuple(data.crop_ratio),
        flip=data.flip,
        gray_target=data.gray_target,
    )

    def init():
        # A step number that no run reaches, so that no training draw is shared with it.
        key = jax.random.fold_in(jax.random.key(config.seed), 0xFFFFFFFF)
        image = jnp.zeros((1, config.image_size, config.image_size, channels))
        noise = jnp.zeros((1, model.grid**2))
        level = jnp.ones((1,), jnp.int32)
        return model.init(key, image, noise, config.task.mask_ratio, level)["params"]

    count = lookup.function("models", config.model.name, "flops_per_image", "config.model.name")
    return Network(model, loss, network_inputs, init, count(model, config.task.mask_ratio))


def build_index(
    config: ConfigDict,
    folder: Path | None,
    split: str | None = None,
    progress: Progress | None = None,
) -> data_index.Index:
    """Pre-flight check of the training images, or of another `split`."""
    data = config.data if split is None else ConfigDict({**config.data.to_dict(), "split": split})
    make_source = lookup.function("data", data.name, "source", "config.data.name")
    source = make_source(data, config.model.in_chans)
    name = "index.json" if split is None else f"index_{split}.json"
    settings = [data[k] for k in ("max_pixels", "max_side", "min_side", "bits16")]
    return data_index.build(
        source,
        check=data.check,
        max_bad_fraction=data.max_bad_fraction,
        fraction=data.fraction if split is None else 1.0,
        seed=config.seed,
        num_threads=data.num_threads,
        cache=folder / name if folder is not None and jax.process_index() == 0 else None,
        settings=repr((*settings, config.model.in_chans)),
        progress=progress,
    )


def schedule_lengths(config: ConfigDict, steps_per_epoch: float) -> tuple[int, float]:
    """(total steps, warm-up epochs) of a run."""
    o = config.optim
    if o.steps:
        epochs = o.steps / steps_per_epoch
        return o.steps, min(o.warmup_epochs, 0.1 * epochs)
    _require(
        "optim.warmup_epochs", o.warmup_epochs, 0 <= o.warmup_epochs < o.epochs,
        f"at least 0 and less than config.optim.epochs={o.epochs:g}",
    )  # fmt: skip
    return max(1, math.ceil(o.epochs * steps_per_epoch)), o.warmup_epochs


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
    total_steps: int
    train_step: Any  # jitted: (state, arrays, batch) -> (state, metrics)
    make_state: Callable[[], steps.TrainState]

    @property
    def steps_per_epoch(self) -> float:
        """May be below one for tiny sets."""
        return self.order.steps_per_epoch

    def every(self, epochs: float) -> int:
        """A number of epochs in whole steps, at least one."""
        return max(1, round(epochs * self.steps_per_epoch))


def build(config: ConfigDict, folder: Path | None, progress: Progress | None = None) -> Experiment:
    """Check the config, index the images, build the steps. Raises `UserError`."""
    check(config)
    network = build_network(config)
    mesh = sharding.make_mesh()
    index = build_index(config, folder, progress=progress)
    if folder is not None:
        workdir.check_data(folder, index.fingerprint, len(index))
    order = Order(len(index), config.optim.batch_size, config.seed)
    total_steps, warmup = schedule_lengths(config, order.steps_per_epoch)
    o = config.optim
    lr, epochs = o.base_lr * o.batch_size / 256, total_steps / order.steps_per_epoch

    def schedule(step):
        return optim.mae_learning_rate(step / order.steps_per_epoch, lr, o.min_lr, warmup, epochs)

    tx = optim.adamw(
        schedule,
        b1=o.b1,
        b2=o.b2,
        eps=o.eps,
        weight_decay=o.weight_decay,
        clip_norm=o.clip_norm,
    )
    loader = Loader(index, config.model.in_chans)
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
    train_step = steps.make_train_step(
        network.inputs, store.gather, network.loss, tx, schedule, config.seed
    )
    make_state = jax.jit(
        lambda: steps.create_state(network.init, tx), out_shardings=sharding.replicated(mesh)
    )
    logging.info("%d steps, %.1f per epoch", total_steps, order.steps_per_epoch)
    return Experiment(
        config,
        mesh,
        network,
        index,
        loader,
        order,
        store,
        total_steps,
        jax.jit(train_step, donate_argnums=0),
        make_state,
    )
