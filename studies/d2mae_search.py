"""D2MAE, the blur of the downstream images: none, fixed, searched (paper: F1 87.95, 88.36, 89.84 on GE4K).

`random` and `oracle` are controls that the paper lacks. A search that works must gain more than a random level; it
cannot gain more than the level chosen using the label.
"""

from studies import common


def get_study(preset):
    """One pre-training run, and one method for each of the six settings."""
    study = common.preset(preset)
    fixed = "fixed(0.8)" if preset == "cpu" else "fixed(0.5)"
    settings = (("none", 87.95), (fixed, 88.36), ("search(2)", 89.84), ("online(2)", None),
                ("random", None), ("oracle", None))  # fmt: skip
    study["methods"] = {
        setting: {
            "pretrain": "d2mae_thyroid",
            "pretrain_overrides": {"task.degrade": common.levels(preset)},
            "finetune_overrides": {"search.setting": setting},
            "paper": {"f1_macro": f1} if f1 else {},
        }
        for setting, f1 in settings
    }
    study |= {"title": "D2MAE: the blur of the downstream images", "reference": "none"}
    return study
