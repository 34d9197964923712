"""Check a training config before any data is read."""

from __future__ import annotations

from typing import Any

import jax
from ml_collections import ConfigDict

from deblur_mae_jax import network as networks
from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError, pair, unknown
from deblur_mae_jax.inference import sliding_window
from deblur_mae_jax.network import Identity

BALANCE = ("none", "sampling", "loss")


def check(config: ConfigDict) -> Identity:
    """Check the config and return what kind of run it describes. Raises `UserError`."""
    c, o = config, config.optim
    identity = networks.check(config)
    sides.checked(c.image_size, identity.axes)
    _require("optim.batch_size", o.batch_size, o.batch_size >= 1, "at least 1")
    _require("optim.accum_steps", o.accum_steps, o.accum_steps >= 1, "at least 1")
    _require("optim.epochs", o.epochs, o.epochs > 0 or o.steps > 0, "greater than 0")
    _require("optim.base_lr", o.base_lr, o.base_lr > 0, "greater than 0")
    _require("optim.weight_decay", o.weight_decay, o.weight_decay >= 0, "0 or greater")
    _require("optim.clip_norm", o.clip_norm, o.clip_norm >= 0, "0 (off) or greater")
    _require("optim.steps", o.steps, o.steps >= 0, "0 (the length is in epochs) or greater")
    _require("optim.warmup_steps", o.warmup_steps, o.warmup_steps >= 0, "0 or greater")
    _require("optim.warmup_epochs", o.warmup_epochs, o.warmup_epochs >= 0, "0 or greater")
    _require("optim.layer_decay", o.layer_decay, 0 < o.layer_decay <= 1, "in (0, 1]")
    _require("optim.eps", o.eps, o.eps > 0, "greater than 0")
    _require("optim.min_lr", o.min_lr, o.min_lr >= 0, "0 or greater")
    _require("optim.warmup_lr", o.warmup_lr, o.warmup_lr >= 0, "0 or greater")
    for section in ("report", "checkpoint"):
        every = c[section].every_epochs
        _require(f"{section}.every_epochs", every, every > 0, "greater than 0; a large number: at the end alone")
    if identity.supervised:
        patience = c.select.patience_epochs
        _require("select.patience_epochs", patience, patience >= 0, "0 (off) or greater")
    _require("log.every_steps", c.log.every_steps, c.log.every_steps >= 1, "at least 1")
    for name in ("b1", "b2"):
        _require(f"optim.{name}", o[name], 0 <= o[name] < 1, "in [0, 1)")
    _require("model.in_chans", c.model.in_chans, c.model.in_chans in (1, 3), "1 or 3")
    bad = c.data.max_bad_fraction
    _require("data.max_bad_fraction", bad, 0 <= bad < 1, "in [0, 1)")
    share = jax.device_count() * o.accum_steps
    if o.batch_size % share:
        near = max(share, round(o.batch_size / share) * share)
        raise UserError(
            f"config.optim.batch_size={o.batch_size} is not divisible by {jax.device_count()} "
            f"device(s) x config.optim.accum_steps={o.accum_steps}; try {near}"
        )
    if identity.axes == 2:
        _check_views(config)
    if identity.supervised:
        check_labels(config, identity)
    else:
        for name in ("num_images", "num_eval_images"):
            _require(f"report.{name}", c.report[name], c.report[name] >= 1, "at least 1")
    return identity


def _require(field: str, value: Any, ok: bool, rule: str) -> None:
    if not ok:
        raise UserError(f"config.{field}={value!r} must be {rule}")


def _check_views(c: ConfigDict) -> None:
    """Checks for 2-D images only."""
    low, high = pair("config.data.crop_scale", c.data.crop_scale, "(0.2, 1.0)")
    _require("data.crop_scale", (low, high), 0 < low <= high <= 1, "(low, high) within (0, 1]")
    low, high = pair("config.data.crop_ratio", c.data.crop_ratio, "(0.75, 1.33)")
    _require("data.crop_ratio", (low, high), 0 < low <= high, "(low, high), greater than 0")
    if c.task.blur_site not in ("native", "network"):
        raise unknown("config.task.blur_site", c.task.blur_site, ("native", "network"))
    for name in ("mean", "std"):
        values = c.data[name]
        if not all(isinstance(value, float | int) for value in values):
            raise UserError(f"config.data.{name}={tuple(values)} must be numbers, such as (0.5,)")
        if values and len(values) not in (1, c.model.in_chans):
            raise UserError(
                f"config.data.{name}={tuple(values)} must have one value, or one for each of "
                f"config.model.in_chans={c.model.in_chans} channels"
            )


def check_labels(config: ConfigDict, identity: Identity) -> None:
    """Checks for tasks with labels only."""
    # Imported here because importing scikit-learn would add a second to the start of every run.
    from deblur_mae_jax.metrics import classification, segmentation

    segments = identity.kind == "segment"
    measures: Any = segmentation.MEASURES if segments else classification.METRICS
    if config.select.metric not in measures:
        raise unknown("config.select.metric", config.select.metric, measures)
    if not segments:
        if config.data.balance not in BALANCE:
            raise unknown("config.data.balance", config.data.balance, BALANCE)
        return
    segmentation.check(config.report.tolerance, config.report.empty)
    sliding_window.check(config.infer.overlap, config.infer.blending)
    crops = config.data.crops_per_image
    _require("data.crops_per_image", crops, crops >= 1, "at least 1")
    if identity.axes == 2:
        setting = config.search.setting
        if setting.strip().startswith(("online", "oracle")):
            raise UserError(
                f"config.search.setting={setting} is for classifiers. Choices: auto, none, search(step), "
                "fixed(sigma), random"
            )
