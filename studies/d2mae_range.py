"""D2MAE, range of the blur: sigma up to 0.6, 1.1, 1.6 (paper, table 3: F1 89.68, 89.84, 89.43 on GE4K)."""

from studies import common


def get_study(preset):
    """One method for each range."""
    study = common.preset(preset)
    study["methods"] = {
        f"sigma up to {high:g}": {
            "pretrain": "d2mae_thyroid",
            "pretrain_overrides": {"task.degrade": common.levels(preset, high)},
            "paper": {"f1_macro": f1},
        }
        for high, f1 in ((0.6, 89.68), (1.1, 89.84), (1.6, 89.43))
    }
    study["title"] = "D2MAE: range of the blur"
    return study
