"""Configs that earlier versions wrote, converted to the fields of this one."""

from __future__ import annotations

from typing import Any

from deblur_mae_jax.config.fields import VIT
from deblur_mae_jax.config.kinds import fields_of
from deblur_mae_jax.config.values import VALUES

_KIND_OF_TASK = {
    "masked_recon": "pretraining", "disrupted_recon": "volumes", "pretext": "pretext", "classify": "finetuning",
    "probe": "probe", "blur_search": "blur_search",
}  # fmt: skip


def upgrade(values: dict[str, Any]) -> dict[str, Any]:
    """Convert a flat config written by version 0.1 to the fields of this version.

    New fields get their defaults. Fields that the run never used are dropped. A size of 0, which meant "set by the
    variant", becomes unset. Two configs are returned unchanged: one that has every field of this version, and one whose
    task is not in this library.
    """
    task = values.get("task.name")
    kind = _KIND_OF_TASK.get(str(task))
    if task == "segment":
        kind = "volume_segmentation" if "data.ct_window" in values else "segmentation"
        if values.get("model.name") == "segmenter":
            kind = f"segmenter_{values['model.encoder']}"
    if kind is None:
        return values
    own_model = VALUES[kind].get("model.name", VIT["name"].default)
    if kind in ("probe", "blur_search"):  # they had all fields of a fine-tuning, most of which they did not read
        unread = fields_of("finetuning").keys() - fields_of(kind).keys()
        values = {name: value for name, value in values.items() if name not in unread}
    if all(name in values for name in fields_of(kind) if not name.startswith("model.")):
        # Written by this version, or before the field `mlp_ratio`; further fields are the user's own.
        wide = "model.mlp_ratio" in fields_of(kind) and values.get("model.name") == own_model
        return {"model.mlp_ratio": VIT["mlp_ratio"].default} | values if wide else values
    out = {}
    for name, field in fields_of(kind).items():
        if name.startswith("model.") and values.get("model.name") != own_model:
            continue  # fields of a network that is not part of this library
        default = None if isinstance(field.default, type) else field.default
        value = values.get(name, list(default) if isinstance(default, tuple) else default)
        out[name] = None if isinstance(field.default, type) and not value else value
    # Keep further settings of a model from a weight file.
    return out | {k: v for k, v in values.items() if k.startswith("model.") and k not in out}
