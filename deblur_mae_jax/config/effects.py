"""Which fields of a config change nothing because of the value of another one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from deblur_mae_jax.config.kinds import GROUPS, INHERITS, fields_of
from deblur_mae_jax.config.tree import flat
from deblur_mae_jax.config.values import PRESETS, UPSTREAM, VALUES

Values = dict[str, Any]


def _is(name: str, *values: Any) -> Callable[[Values], bool]:
    """Whether a field has one of these values; False for a kind of run without it."""
    return lambda own: name in own and _plain(own[name]) in values


def _plain(value: Any) -> Any:
    """A config makes lists of some tuples."""
    return tuple(value) if isinstance(value, list) else value


def _searches_nothing(own: Values) -> bool:
    return str(own.get("search.setting", "")).startswith(("none", "fixed", "random"))


def _segments_images(own: Values) -> bool:
    return "infer.overlap" in own and "data.ct_window" not in own


# Fields, when they have no effect, and the reason: a field whose value says it, or words.
RULES: tuple[tuple[tuple[str, ...], Callable[[Values], bool], str], ...] = (
    (("optim.min_lr",), _is("optim.schedule", "constant", "multistep"), "optim.schedule"),
    (("optim.b1", "optim.b2", "optim.eps", "optim.decay_on"), _is("optim.name", "lars", "lars_simclr"),
     "optim.name"),
    (("sharding.min_mib", "sharding.replica"), _is("sharding.params", "replicate"), "sharding.params"),
    (("task.dice_weight", "task.include_background"), _is("task.loss", "ce"), "task.loss"),
    (("task.ce_weight",), _is("task.loss", "dice"), "task.loss"),
    (("task.mix_switch",), lambda c: _is("task.mixup", 0)(c) or _is("task.cutmix", 0)(c),
     "task.mixup or task.cutmix is 0"),
    (("task.mix_probability",), lambda c: _is("task.mixup", 0)(c) and _is("task.cutmix", 0)(c),
     "task.mixup=0 and task.cutmix=0"),
    (("task.local_mask_scope",), _is("task.local_mask", 0), "task.local_mask"),
    (("task.contrast_weight", "task.temperature"), _is("task.contrast", "none"), "task.contrast"),
    (("task.mask_range",), _is("task.mask_probability", 0), "task.mask_probability"),
    (("task.blur_site",), _is("task.degrade", "none"), "task.degrade"),
    (("task.freeze_patch_embed",), _is("model.name", "siamese_resnet"), "a ResNet has no patch embedding"),
    (("model.level_code",), _is("model.conditioning", "none"), "model.conditioning"),
    (("model.decoder_level_token",), _is("model.conditioning", "none", "addition"),
     "model.conditioning"),
    (("model.predictor_last",), _is("model.predictor", ()), "model.predictor"),
    (("search.high_pass", "search.batch_size", "search.cache"), _searches_nothing, "search.setting"),
    (("augment.local_size", "augment.local_scale"), _is("augment.local_crops", 0), "augment.local_crops"),
    (("augment.intensity_scale", "augment.intensity_shift"), _is("augment.intensity_probability", 0),
     "augment.intensity_probability"),
    (("report.monitor_images", "report.monitor_share"), _is("report.monitor_root", ""), "report.monitor_root is empty"),
    (("infer.overlap", "infer.blending"), _segments_images, "images are segmented as a whole"),
    (("probe.neighbours",), _is("probe.kind", "logistic"), "probe.kind"),
    (("probe.strengths",), _is("probe.kind", "knn"), "probe.kind"),
    (("init_strict", "init_parts"), _is("init_from", ""), "init_from is empty"),
    (("data.gray_target",), _is("model.in_chans", 1), "model.in_chans"),
    (("data.check",), lambda c: "data.val_split" in c, "with labels all pixels are checked"),
)  # fmt: skip


def without_effect(config: ConfigDict) -> list[str]:
    """A line for every field that was changed and has no effect, with the reason.

    config: of a run, with its inherited fields filled in or not.
    """
    values = flat(config)
    kind = next((kind for kind in GROUPS if set(fields_of(kind)) == set(values)), None)
    if kind is None:  # a kind of the user's own
        return []
    usual = {name: field.default for name, field in fields_of(kind).items()} | VALUES[kind]
    presets = UPSTREAM.get(kind, {}), PRESETS.get(kind, {})
    expected = lambda name: [_plain(own[name]) for own in (usual, *presets) if name in own]
    return [
        f"config.{name}={_plain(values[name])!r} has no effect: {f'{why}={values[why]}' if why in values else why}"
        for names, holds, why in RULES
        for name in names
        if name in values and holds(values) and name not in INHERITS.get(kind, ())
        and _plain(values[name]) not in expected(name)
    ]  # fmt: skip
