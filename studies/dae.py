r"""Disruptive Autoencoders against training from scratch and 3-D MAE, with all and a fifth of the training volumes.

With all volumes also each disruption alone, and windows as the published code computes them.

    python scripts/study.py studies/dae.py --preset=cpu --output=runs/dae_study
    python scripts/study.py studies/dae.py --preset=full --output=runs/dae_study \
      --pretrain_root="/data/lung=ct;/data/brain=mr" \
      --finetune_root=/data/feta=mr --folds=0,1,2,3,4

The paper's numbers are Dice on FeTA over 5 folds; it gives the single disruptions on BTCV (`configs/dae_ct_mr.py`).
"""

from studies import common

_SIZE = {"image_size": 32, "model.variant": "12"}
_PRETRAIN = {
    **_SIZE, "data.num_threads": 2,
    "optim.batch_size": 2, "optim.base_lr": 2e-3, "optim.steps": 300, "optim.warmup_steps": 30,
    "checkpoint.every_epochs": 100.0, "report.every_epochs": 1000.0, "log.tensorboard": False,
}  # fmt: skip
_FINETUNE = {
    "data.num_threads": 2, "data.crops_per_image": 1, "optim.batch_size": 2, "optim.base_lr": 2e-3, "optim.steps": 120,
    "optim.warmup_steps": 12, "infer.overlap": 0.25, "checkpoint.every_epochs": 100.0, "report.every_epochs": 100.0,
    "log.tensorboard": False,
}  # fmt: skip
_PHANTOMS = {
    "pretrain": {"data.name": "phantoms3d", "data.num_images": 48, "data.side": 48},
    "finetune": {"data.name": "phantoms3d", "data.num_images": 40, "data.side": 48, "data.phantom_seed": 1},
}
_ALONE = {
    "DAE, noise alone": ("dae_ct_mr:noise", {}), "DAE, down-sampling alone": ("dae_ct_mr:downsampling", {}),
    "DAE, local masking alone": ("dae_ct_mr:local_masking", {}),
    "DAE, as coded": ("dae_ct_mr", {"model.layout": "as_coded"}),
}  # fmt: skip
# As coded, the depth of the patches of 32 voxels, 16, is the number of channels.
_WIDE = {"model.feature_size": 16, "model.num_heads": (2, 4, 8, 16)}
_FETA = {"from scratch": (83.9, 61.8), "3-D MAE": (83.8, 62.5), "DAE": (84.2, 65.1)}


def get_study(preset):
    """Three initialisations, each with two shares of the training volumes, and the disruptions alone with all."""
    small = preset == "cpu"
    study = {
        "pretrain": _PRETRAIN if small else {},
        "finetune": _FINETUNE if small else {},
        "scratch": {**(_SIZE if small else {}), "model.patch_embed": "unet_basic", "model.merge_order": "legacy"},
        "phantoms": _PHANTOMS if small else {},
        "seeds": common.preset(preset)["seeds"],
        "paper_set": "FeTA",
        "title": "Disruptive Autoencoders",
        "methods": {},
    }  # fmt: skip
    configs = {"from scratch": None, "3-D MAE": "mae3d_ct_mr", "DAE": "dae_ct_mr"}
    fine = "segment_volumes" if small else "segment_feta"
    for column, share in enumerate((1.0, 0.2)):
        for name, config in configs.items():
            study["methods"][f"{name}, {share:.0%} of the volumes"] = {
                "pretrain": config,
                "finetune": fine,
                "finetune_overrides": {"data.fraction": share},
                "paper": {"dice": _FETA[name][column]},
            }
    alone = dict(_ALONE)
    if small:
        config, fields = alone.pop("DAE, as coded")
        alone |= {"DAE, 16 wide": (config, _WIDE), "DAE, as coded, 16 wide": (config, fields | _WIDE)}
    for name, (config, fields) in alone.items():
        study["methods"][name] = {"pretrain": config, "pretrain_overrides": fields, "finetune": fine, "paper": {}}
    return study
