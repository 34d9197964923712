"""How many labelled images are enough: fine-tuning on shares of them, from scratch and from two pre-trainings.

    python scripts/study.py studies/label_share.py --preset=cpu --output=runs/label_share

A share of every class is drawn from the training images, the same for all seeds; validation and test images stay.
Every share is trained for the same number of epochs, smaller ones thus for fewer steps. The papers have no such table.
"""

from studies import common

SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)


def get_study(preset):
    """From scratch, MAE and D2MAE, each with every share of the labelled images."""
    study = common.preset(preset)
    levels = {"task.degrade": common.levels(preset)}
    starts = {"from scratch": (None, {}), "MAE": ("mae_thyroid", {}), "D2MAE": ("d2mae_thyroid", levels)}
    study["phantoms"] = {
        kind: {name: value for name, value in fields.items() if name != "data.fraction"}
        for kind, fields in study["phantoms"].items()
    }
    study["methods"] = {
        f"{name}, {share:.0%} of the labels": {
            "pretrain": config, "pretrain_overrides": overrides, "paper": {},
            "finetune_overrides": {"data.fraction": share},
        }
        for share in SHARES
        for name, (config, overrides) in starts.items()
    }  # fmt: skip
    study |= {"title": "Shares of the labelled images", "reference": "MAE, 100% of the labels"}
    return study
