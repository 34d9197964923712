"""The kinds of run: the groups of fields that each has, and the fields that it inherits from a network."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict

from deblur_mae_jax.config.fields import (
    AUGMENT_CLASSES,
    AUGMENT_INTENSITY,
    AUGMENT_LOCAL,
    AUGMENT_VIEWS,
    AUGMENT_VOLUMES,
    BACKBONE,
    BEIT_HEAD,
    BLUR_SITE,
    CHECKPOINT,
    CLASSES,
    CLASSIFY,
    COMPUTE,
    CONVVIT,
    CROPS,
    DEGRADE,
    DENOISER,
    DIFFMAE,
    DINO,
    DISRUPTED_RECON,
    FOREGROUND,
    IMAGES,
    INFER,
    LABEL_MAPS,
    LOG,
    MASKED_RECON,
    MIM,
    MIM_VIT,
    MOCO,
    MODALITIES,
    MONITOR,
    OPTIM,
    PATIENCE,
    PRETEXT,
    PROBE,
    PROJECTION,
    PROTOTYPES,
    REPORT,
    REPORT_LABELS,
    REPORT_RECONSTRUCTION,
    REPORT_SEGMENTATION,
    RUN,
    SEARCH,
    SECOND_HEAD,
    SEGMENT,
    SEGMENTER,
    SELECT,
    SHARDING,
    SIMCLR,
    SOURCE,
    SPLITS,
    STORE,
    SWIN,
    SWIN_OUTPUT,
    SWIN_RECONSTRUCTION,
    SWIN_SSL,
    TASK,
    TRAINING,
    TRUNK,
    VIT,
    VIT_DECODER,
    VIT_HEAD,
    VIT_UNETR,
    VOLUMES,
    WINDOWS,
    Field,
    Group,
)  # fmt: skip

Groups = dict[str, tuple[Group, ...]]
_COMMON: Groups = {
    "": (RUN, TRAINING),
    "optim": (OPTIM,),
    "sharding": (SHARDING,),
    "checkpoint": (CHECKPOINT,),
    "log": (LOG,),
}
_VIT_LABELS: Groups = {
    **_COMMON,
    "search": (SEARCH,),
    "select": (SELECT, PATIENCE),
}
GROUPS: dict[str, Groups] = {
    "pretraining": {
        **_COMMON,
        "task": (TASK, DEGRADE, BLUR_SITE, MASKED_RECON),
        "model": (VIT, VIT_DECODER),
        "data": (SOURCE, STORE, IMAGES, CROPS),
        "report": (REPORT, REPORT_RECONSTRUCTION, MONITOR),
    },
    "finetuning": {
        **_VIT_LABELS,
        "task": (TASK, DEGRADE, BLUR_SITE, CLASSIFY),
        "model": (VIT, VIT_HEAD),
        "data": (SOURCE, STORE, IMAGES, CROPS, SPLITS, CLASSES),
        "augment": (AUGMENT_CLASSES,),
        "report": (REPORT, REPORT_LABELS),
    },
    "segmentation": {
        **_VIT_LABELS,
        "task": (TASK, DEGRADE, BLUR_SITE, SEGMENT),
        "model": (VIT, VIT_UNETR),
        "data": (SOURCE, STORE, IMAGES, CROPS, SPLITS, LABEL_MAPS),
        "augment": (AUGMENT_INTENSITY,),
        "infer": (INFER,),
        "report": (REPORT, REPORT_LABELS, REPORT_SEGMENTATION),
    },
    "volumes": {
        **_COMMON,
        "task": (TASK, DEGRADE, DISRUPTED_RECON),
        "model": (SWIN, SWIN_OUTPUT, SWIN_RECONSTRUCTION),
        "data": (SOURCE, STORE, VOLUMES, MODALITIES),
        "report": (REPORT, REPORT_RECONSTRUCTION),
    },
    "pretext": {
        **_COMMON,
        "task": (TASK, DEGRADE, PRETEXT),
        "model": (SWIN, SWIN_SSL),
        "data": (SOURCE, STORE, VOLUMES, MODALITIES),
        "report": (REPORT, REPORT_RECONSTRUCTION),
    },
    "volume_segmentation": {
        **_COMMON,
        "task": (TASK, DEGRADE, SEGMENT),
        "model": (SWIN, SWIN_OUTPUT),
        "data": (SOURCE, STORE, VOLUMES, SPLITS, LABEL_MAPS, FOREGROUND),
        "augment": (AUGMENT_INTENSITY, AUGMENT_VOLUMES),
        "infer": (INFER,),
        "select": (SELECT, PATIENCE),
        "report": (REPORT, REPORT_LABELS, REPORT_SEGMENTATION),
    },
}
GROUPS["backbones"] = {**GROUPS["finetuning"], "model": (BACKBONE,)}
GROUPS["swin2d"] = {**GROUPS["finetuning"], "model": (BACKBONE, WINDOWS)}
GROUPS["diffmae"] = {**GROUPS["pretraining"], "task": (TASK, DEGRADE, BLUR_SITE, DIFFMAE), "model": (VIT, DENOISER)}
GROUPS["simmim_vit"] = {**GROUPS["pretraining"], "model": (VIT, MIM_VIT)}
GROUPS["convmae"] = {**GROUPS["pretraining"], "model": (CONVVIT, VIT_DECODER)}
_CONVVIT_HEAD: Group = {name: VIT_HEAD[name] for name in ("drop_path", "head_init")}
GROUPS["beit"] = {**GROUPS["finetuning"], "model": (VIT, BEIT_HEAD)}
GROUPS["simmim_swin2d"] = {**GROUPS["pretraining"], "model": (TRUNK, WINDOWS, MIM, {"drop_path": MIM_VIT["drop_path"]})}
GROUPS["convvit"] = {**GROUPS["finetuning"], "model": (CONVVIT, _CONVVIT_HEAD)}
ENCODERS = {
    "resnet": (TRUNK,), "convnext": (TRUNK,), "swin2d": (TRUNK, WINDOWS), "vit": (VIT,), "convvit": (CONVVIT,),
    "beit": (VIT, {name: BEIT_HEAD[name] for name in ("positions", "layer_scale")}),
}  # fmt: skip
for _encoder, _fields in ENCODERS.items():
    GROUPS[f"segmenter_{_encoder}"] = {
        **GROUPS["segmentation"], "task": (TASK, DEGRADE, BLUR_SITE, SEGMENT, SECOND_HEAD),
        "model": (*_fields, SEGMENTER),
    }  # fmt: skip
_CONTRAST: Groups = {
    **_COMMON,
    "data": (SOURCE, STORE, IMAGES, CROPS),
    "augment": (AUGMENT_VIEWS,),
    "report": (REPORT, REPORT_RECONSTRUCTION, MONITOR),
}
_TASKS_OF_CONTRAST = {"moco_v3": (TASK, DEGRADE, BLUR_SITE, MOCO), "simclr": (TASK, DEGRADE, BLUR_SITE, SIMCLR)}
_NETWORKS_OF_CONTRAST = {"vit": (VIT, PROJECTION), "resnet": (TRUNK, PROJECTION)}
for _method, _task in _TASKS_OF_CONTRAST.items():
    for _network, _model in _NETWORKS_OF_CONTRAST.items():
        GROUPS[f"{_method}_{_network}"] = {**_CONTRAST, "task": _task, "model": _model}
GROUPS["dino_v2"] = {
    **_CONTRAST, "augment": (AUGMENT_VIEWS, AUGMENT_LOCAL), "task": (TASK, DEGRADE, BLUR_SITE, DINO),
    "model": (VIT, PROTOTYPES),
}  # fmt: skip
# Runs that use a trained network as it is: no optimiser, crops or checkpoints, whose fields would change nothing.
_AS_IT_IS: Groups = {
    "": (RUN,), "task": (TASK, DEGRADE, BLUR_SITE),
    "model": ({name: field for name, field in VIT.items() if name not in {"attention", *COMPUTE}},),
    "data": (SOURCE, IMAGES), "search": (SEARCH,),
}  # fmt: skip
GROUPS["probe"] = {
    **_AS_IT_IS, "data": (SOURCE, IMAGES, SPLITS, CLASSES), "select": (SELECT,), "report": (REPORT_LABELS,),
    "probe": (PROBE,),
}  # fmt: skip
GROUPS["blur_search"] = _AS_IT_IS

# Fields that a run inherits from the network in `init_from` unless the user sets them. `FROM_SCRATCH` has the values
# for a run without such a network, if they differ from the fields' defaults.
INHERITED_BY_IMAGES = (
    "image_size", "task.degrade", "task.blur_site", "model.variant", "model.patch_size", "model.in_chans",
    "model.embed_dim", "model.depth", "model.num_heads", "model.mlp_ratio", "model.conditioning", "model.level_code",
    "data.mean", "data.std", "data.max_side", "data.bits16", "data.gray_target",
)  # fmt: skip
INHERITED_BY_CONVVIT = (
    "image_size", "task.degrade", "task.blur_site", "model.variant", "model.stem_dims", "model.stem_depths",
    "model.in_chans", "model.embed_dim", "model.depth", "model.num_heads", "model.mlp_ratio", "model.conditioning",
    "model.level_code", "data.mean", "data.std", "data.max_side", "data.bits16", "data.gray_target",
)  # fmt: skip
INHERITED_BY_BACKBONES = (
    "image_size", "task.degrade", "task.blur_site", "model.in_chans", "data.mean", "data.std", "data.max_side",
    "data.bits16", "data.gray_target",
)  # fmt: skip
# The CT window and the spacing describe the images, not the network, so they are not inherited.
INHERITED_BY_VOLUMES = (
    "image_size", "model.variant", "model.feature_size", "model.depths", "model.num_heads", "model.in_chans",
    "model.patch_embed", "model.merge_order",
)  # fmt: skip
INHERITS = {
    "finetuning": INHERITED_BY_IMAGES,
    "convvit": INHERITED_BY_CONVVIT,
    "beit": (*INHERITED_BY_IMAGES, "model.layer_scale"),
    "backbones": INHERITED_BY_BACKBONES,
    "swin2d": INHERITED_BY_BACKBONES,
    "probe": INHERITED_BY_IMAGES,
    "blur_search": INHERITED_BY_IMAGES,
    "segmentation": INHERITED_BY_IMAGES,
    "volume_segmentation": INHERITED_BY_VOLUMES,
}
_OF_ENCODER = {"vit": INHERITS["finetuning"], "beit": INHERITS["beit"], "convvit": INHERITED_BY_CONVVIT}
INHERITS |= {f"segmenter_{name}": _OF_ENCODER.get(name, INHERITED_BY_BACKBONES) for name in ENCODERS}
FROM_SCRATCH = {
    "volume_segmentation": {
        "image_size": 96,
        "model.patch_embed": "conv",
        "model.merge_order": "monai15",
    }
}
# Fields of `config.data` that change the decoded values.
DECODING = ("max_pixels", "max_side", "min_side", "bits16", "spacing", "ct_window", "mask_values", "crop", "window")


def fields_of(kind: str) -> dict[str, Field]:
    """The fields of a kind of run by dotted name."""
    return {
        f"{section}.{name}" if section else name: field
        for section, groups in GROUPS[kind].items()
        for group in groups
        for name, field in group.items()
    }


def without_source(axes: int) -> dict[str, Any]:
    """The value of every field that a run could inherit, for a run that starts from scratch.

    axes: spatial axes of the images, 2 or 3.
    """
    kind = "finetuning" if axes == 2 else "volume_segmentation"
    fields, from_scratch = fields_of(kind), FROM_SCRATCH.get(kind, {})
    values = {name: from_scratch.get(name, fields[name].default) for name in INHERITS[kind]}
    return {name: None if isinstance(value, type) else value for name, value in values.items()}


def decoding(config: ConfigDict) -> list[Any]:
    """The settings that change the decoded values of an image."""
    values = config.data.to_dict()
    return [values[name] for name in DECODING if name in values]
