r"""The rows of DeblurrMAE's table 1 and D2MAE's table 2: what can be trained here is run, the rest is quoted.

    python scripts/study.py studies/paper_tables.py --preset=cpu --output=runs/tables
    python scripts/study.py studies/paper_tables.py --preset=full --output=runs/tables --weights=weights \
      --pretrain_root=/my/images --finetune_root=/my/labelled --folds=0,1,2,3,4

Rows that start from ImageNet's weights need a file or folder of the name that the table states, in the folder of
`--weights`. Accuracy, F1 and AUROC of the papers are those on GE4K. F1 is that of the malignant class in DeblurrMAE's
table, whose rows D2MAE repeats; D2MAE's own is a macro F1. F1 on LEPset and MMOTU is macro F1, from D2MAE's table.
"""

from __future__ import annotations

import importlib

from deblur_mae_jax import config as fields
from studies import common

QUOTED = ("F1 on LEPset", "F1 on MMOTU")
# Small networks for the preset `cpu`, where the ViT's sizes do not apply.
_CONVOLUTIONS = {"model.width": 16, "model.depths": (1, 1, 2, 1)}
_PROJECTOR = {"model.projector": (256, 256, 64), "model.predictor": (256, 64)}
_CONVVIT = {"model.patch_size": 16, "model.stem_dims": (32, 48), "model.stem_depths": (1, 1)}


def _paper(accuracy=None, f1=None, auroc=None, lepset=None, mmotu=None, macro=False):
    """The papers' numbers by name, without those that they do not give."""
    name = "f1_macro" if macro else "f1_binary"
    values = {"accuracy": accuracy, name: f1, "auroc": auroc, "F1 on LEPset": lepset, "F1 on MMOTU": mmotu}
    return {key: value for key, value in values.items() if value is not None}


def _known(config, overrides):
    """The overrides of fields that a config has."""
    file, _, arguments = config.partition(":")
    get = importlib.import_module(f"configs.{file}").get_config
    has = fields.flat(get(arguments) if arguments else get())
    return {name: value for name, value in overrides.items() if name in has}


def _pretrained(study, pretrain, paper, finetune="finetune", sizes=None, **changes):
    """A row that is pre-trained on ultrasound, and fine-tuned."""
    overrides = {**study["pretrain"], **(sizes or {}), **changes}
    if not study["pretrain"]:
        overrides = changes
    return {
        "pretrain": pretrain, "pretrain_overrides": _known(pretrain, overrides), "finetune": finetune, "paper": paper,
    }  # fmt: skip


def _supervised(study, config, paper, weights="", **fields):
    """A row without pre-training on ultrasound: from weights in a file, or from scratch.

    fields: further fields of the fine-tuning.
    """
    small = {"image_size": 64, **_CONVOLUTIONS} if study["pretrain"] and config != "finetune" and not weights else {}
    own = _known(config, {**study["finetune"], **small}) | fields
    row = {"pretrain": None, "finetune": config, "finetune_overrides": own, "scratch": {}, "paper": paper}
    return row | ({"weights": weights} if weights else {})


def get_study(preset):
    """All rows. Rows that can only be quoted have `quoted`."""
    study = common.preset(preset)
    small = preset == "cpu"
    gaussian = common.gaussian(preset)
    quoted = lambda **paper: {"quoted": True, "paper": _paper(**paper)}
    contrast = {"optim.batch_size": 64, "optim.base_lr": 3e-3} if small else {}
    swin = {"accuracy": 87.43, "f1": 84.92, "auroc": 92.83, "lepset": 82.66, "mmotu": 68.58}
    mae = {"accuracy": 87.25, "f1": 85.23, "auroc": 93.71, "lepset": 81.71, "mmotu": 68.58}
    convnext = {"accuracy": 87.76, "f1": 85.47, "auroc": 93.22, "lepset": 83.97, "mmotu": 69.06}
    moco = {"accuracy": 87.08, "f1": 84.55, "auroc": 92.95, "lepset": 83.38, "mmotu": 71.68}
    ours = _paper(90.38, 89.84, 96.21, 87.41, 75.70, macro=True)
    study["methods"] = {
        "ResNet-101 (from scratch)": _supervised(study, "resnet:101", _paper(86.06, 83.18, 91.96)),
        "ConvNeXt-L (ImageNet)": _supervised(
            study, "convnext:l", _paper(**convnext), "convnext_large.fb_in22k_ft_in1k"
        ),
        "Swin-L (ImageNet)": _supervised(
            study, "swin:l", _paper(**swin), "swin_large_patch4_window7_224.ms_in22k_ft_in1k"
        ),
        "Wang et al.": quoted(accuracy=87.44, f1=85.16, auroc=93.11),
        "Zhou et al.": quoted(accuracy=88.15, f1=86.09, auroc=94.17),
        "ViT-B (ImageNet)": _supervised(
            study, "finetune", _paper(86.38, 84.17, 92.69, 84.34, 68.02), "vit_base_patch16_224.augreg_in21k_ft_in1k",
            **{"model.pool": "cls"},  # these weights were trained with the cls token, whose norm they hold
        ),
        "SimCLR ResNet-50 (ImageNet)": _supervised(
            study, "resnet:50", _paper(86.21, 83.81, 92.16), "simclr_resnet50"
        ),
        "SimCLR ResNet-50 (ultrasound)": _pretrained(
            study, "simclr", {}, "resnet:50", _CONVOLUTIONS | _PROJECTOR | {"model.predictor": ()},
            **({"optim.batch_size": 64} if small else {}),
        ),
        "MoCo v3 (ImageNet)": _supervised(
            study, "finetune", _paper(86.96, 84.48, 92.77, 81.64, 68.87), "moco_v3_vit_b"
        ),
        "MoCo v3 (ultrasound)": _pretrained(study, "moco_v3", _paper(**moco), sizes=_PROJECTOR, **contrast),
        "MAE (ImageNet)": _supervised(study, "finetune", _paper(**mae), "mae_pretrain_vit_base"),
        "MAE (ultrasound)": _pretrained(study, "mae_thyroid", _paper(89.45, 87.54, 95.54, 84.83, 71.58)),
        "denoising MAE": _pretrained(study, "denoising_mae_thyroid", _paper(80.38, 77.99, 84.38)),
        "ConvMAE": _pretrained(study, "convmae", {}, "convvit", _CONVVIT),
        "Deblurring ConvMAE": _pretrained(
            study, "convmae:deblur", {}, "convvit", _CONVVIT, **{"task.degrade": gaussian}
        ),
        "DiffMAE": _pretrained(study, "diffmae", _paper(f1=85.59, lepset=83.43, mmotu=70.47, macro=True)),
        "USFM": quoted(f1=88.87, lepset=84.02, mmotu=70.94, macro=True),
        "DSMT-Net": quoted(lepset=82.20),
        "DeblurrMAE (SRAD)": _pretrained(
            study, "deblur_mae_thyroid", _paper(90.07, 88.13, 95.87),
            **{"task.degrade": "speckle.srad(40, 0.1)", "task.blur_site": "native"},
        ),
        "DeblurrMAE (Gaussian)": _pretrained(
            study, "deblur_mae_thyroid", _paper(90.19, 88.48, 96.08, 84.61, 72.33), **{"task.degrade": gaussian}
        ),
        "D2MAE": _pretrained(study, "d2mae_thyroid", ours, **{"task.degrade": common.levels(preset)}),
    }  # fmt: skip
    study |= {"title": "The papers' tables", "pretrain": {}, "quoted": QUOTED, "reference": "MAE (ultrasound)"}
    for method in study["methods"].values():
        method.setdefault("finetune_overrides", _known(method.get("finetune", "finetune"), study["finetune"]))
    study["finetune"] = {}
    return study
