"""D2MAE, how the network receives the level: not at all, added, as a token (paper: F1 87.66, 88.57, 89.84 on GE4K)."""

from studies import common


def get_study(preset):
    """One method for each way to receive the level."""
    study = common.preset(preset)
    study["methods"] = {
        name: {
            "pretrain": "d2mae_thyroid",
            "pretrain_overrides": {
                "task.degrade": common.levels(preset),
                "model.conditioning": name,
            },
            "paper": {"f1_macro": f1},
        }
        for name, f1 in (("none", 87.66), ("addition", 88.57), ("token", 89.84))
    }
    study["title"] = "D2MAE: how the network receives the level"
    return study
