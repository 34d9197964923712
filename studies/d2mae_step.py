"""D2MAE, step of the search: 1, 2, 3 (paper: F1 89.94, 89.84, 89.05 on GE4K)."""

from studies import common


def get_study(preset):
    """One pre-training run, and one method for each search step."""
    study = common.preset(preset)
    study["methods"] = {
        f"step {step}": {
            "pretrain": "d2mae_thyroid",
            "pretrain_overrides": {"task.degrade": common.levels(preset)},
            "finetune_overrides": {"search.setting": f"search({step})"},
            "paper": {"f1_macro": f1},
        }
        for step, f1 in ((1, 89.94), (2, 89.84), (3, 89.05))
    }
    study["title"] = "D2MAE: step of the search"
    return study
