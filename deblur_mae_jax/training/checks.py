"""Check a training config before any data is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
from ml_collections import ConfigDict

from deblur_mae_jax import config as fields
from deblur_mae_jax import network as networks
from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError, pair, unknown
from deblur_mae_jax.inference import sliding_window
from deblur_mae_jax.network import Identity
from deblur_mae_jax.workdir import checkpoint

BALANCE = ("none", "sampling", "loss")
AUDITS = ("near", "identical")
_PARTS = ("both", "encoder", "decoder")
_SHARE = (lambda value: 0 <= value <= 1, "in [0, 1]")
_WHOLE = (lambda value: all(number >= 1 for number in (value if isinstance(value, list) else [value])), "at least 1")
_COUNT = (lambda value: value >= 0, "at least 0")
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "data.max_side": _COUNT, "data.min_side": _WHOLE, "data.num_workers": _COUNT, "data.num_threads": _COUNT,
    "data.split_seed": (lambda value: 0 <= value < 2**32, "in 0..2^32 - 1"),
    "data.folds": (lambda value: value >= 2 and value == int(value), "a whole number of at least 2"),
    "data.foreground": _SHARE,
    "augment.erase_probability": _SHARE, "augment.flip_probability": _SHARE, "augment.rotate_probability": _SHARE,
    "augment.intensity_probability": _SHARE,
    "augment.intensity_scale": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "augment.intensity_shift": (lambda value: 0 <= value < math.inf, "0 or greater, and finite"),
    "task.contrast_weight": (lambda value: 0 <= value < math.inf, "0 (off) or greater, and finite"),
    "task.rotation_weight": (lambda value: 0 <= value < math.inf, "0 (off) or greater, and finite"),
    "task.reconstruction_weight": (lambda value: 0 <= value < math.inf, "0 (off) or greater, and finite"),
    "task.temperature": (lambda value: 0 < value < math.inf, "greater than 0, and finite"),
    "task.label_smoothing": (lambda value: 0 <= value < 1, "in [0, 1)"),
    "task.mixup": (lambda value: 0 <= value < math.inf, "0 (off) or greater"),
    "task.cutmix": (lambda value: 0 <= value < math.inf, "0 (off) or greater"),
    "task.mix_probability": _SHARE,
    "task.mix_switch": _SHARE,
    "model.head_init": (lambda value: value >= 0, "0 or greater"),
    "model.depth": _WHOLE, "model.embed_dim": _WHOLE, "model.num_heads": _WHOLE, "model.patch_size": _WHOLE,
    "model.width": _WHOLE, "model.decoder_depth": (lambda value: value >= 0, "0 or greater"),
    "model.decoder_embed_dim": _WHOLE, "model.decoder_num_heads": _WHOLE,
}  # fmt: skip


def check(config: ConfigDict) -> Identity:
    """Check the config and return what kind of run it describes. Raises `UserError`."""
    c, o = config, config.optim
    identity = networks.check(config)
    sides.checked(c.image_size, identity.axes)
    _require("optim.batch_size", o.batch_size, o.batch_size >= 1, "at least 1")
    _require("optim.accum_steps", o.accum_steps, o.accum_steps >= 1, "at least 1")
    _require("optim.epochs", o.epochs, 0 < o.epochs < math.inf or o.steps > 0, "greater than 0, and finite")
    _require("optim.base_lr", o.base_lr, 0 < o.base_lr < math.inf, "greater than 0, and finite")
    _require("optim.weight_decay", o.weight_decay, 0 <= o.weight_decay < math.inf, "0 or greater, and finite")
    _require("optim.clip_norm", o.clip_norm, o.clip_norm >= 0, "0 (off) or greater")
    _require("optim.steps", o.steps, o.steps >= 0, "0 (the length is in epochs) or greater")
    _require("optim.warmup_steps", o.warmup_steps, o.warmup_steps >= 0, "0 or greater")
    _require("optim.warmup_epochs", o.warmup_epochs, o.warmup_epochs >= 0, "0 or greater")
    _require("optim.layer_decay", o.layer_decay, 0 < o.layer_decay <= 1, "in (0, 1]")
    _require("optim.eps", o.eps, o.eps > 0, "greater than 0")
    peak = o.base_lr * (o.batch_size / 256 if o.scale_lr else 1)
    _require("optim.min_lr", o.min_lr, o.min_lr >= 0, "0 or greater")
    _require("optim.min_lr", o.min_lr, o.min_lr <= peak, f"at most {peak:g}, the peak rate of this run")
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
    _require("init_parts", c.init_parts, c.init_parts in _PARTS, " | ".join(_PARTS))
    _require("hang_minutes", c.hang_minutes, c.hang_minutes >= 0, "0 (never) or greater")
    checkpoint.check(c.checkpoint.keep_last, c.checkpoint.commit, c.checkpoint.async_save)
    _check_ranges(fields.flat(c))
    bad = c.data.max_bad_fraction
    _require("data.max_bad_fraction", bad, 0 <= bad < 1, "in [0, 1)")
    share = jax.device_count() * o.accum_steps
    if o.batch_size % share:
        near = max(share, round(o.batch_size / share) * share)
        raise UserError(
            f"config.optim.batch_size={o.batch_size} is not divisible by {jax.device_count()} "
            f"device(s) x config.optim.accum_steps={o.accum_steps}; try {near}"
        )
    _check_comparisons(config, identity)
    if identity.axes == 2:
        _check_views(config)
    else:
        _require("model.in_chans", c.model.in_chans, c.model.in_chans == 1, "1: volumes have one channel")
        outputs = fields.flat(c).get("model.out_chans", 1)
        _require("model.out_chans", outputs, outputs == 1, "1, the number of channels that are reconstructed")
    if identity.supervised:
        check_labels(config, identity)
    else:
        for name in ("num_images", "num_eval_images"):
            _require(f"report.{name}", c.report[name], c.report[name] >= 1, "at least 1")
    return identity


def _check_comparisons(c: ConfigDict, identity: Identity) -> None:
    """Losses that compare the images of a step need some of them."""
    o = c.optim
    weight = fields.flat(c).get("task.contrast_weight", 0) if identity.kind == "pretext" else 0
    apart = fields.flat(c).get("task.contrast", "none") != "none"
    if o.batch_size // o.accum_steps < 2 and (identity.kind in ("contrast", "distill") or weight or apart):
        off = "config.task.contrast_weight=0" if weight else "config.task.contrast=none" if apart else ""
        raise UserError(
            f"config.optim.batch_size={o.batch_size} with config.optim.accum_steps={o.accum_steps}: {c.task.name} "
            "compares the images of a step, so a step needs at least 2 at once"
            + (f"; {off} switches this loss off" if off else "")
        )


def _check_ranges(values: dict[str, Any]) -> None:
    """The ranges of fields that only some kinds of run have."""
    for name, (ok, rule) in _RANGES.items():
        value = values.get(name)  # None: the kind of run lacks it, or it is unset
        if value is not None:
            _require(name, value, ok(value), rule)


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
        low = 0 if name == "mean" else 1e-6
        if not all(low <= value <= 1 for value in values):  # also catches NaN
            raise UserError(
                f"config.data.{name}={tuple(values)} must be in {'0' if name == 'mean' else '0 (excluded)'} to 1: gray "
                "levels are 0 to 1 here, so divide values of the 0 to 255 scale by 255"
            )
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
    if config.report.audit not in AUDITS:
        raise unknown("config.report.audit", config.report.audit, AUDITS)
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
