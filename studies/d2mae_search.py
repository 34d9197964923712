"""D2MAE, the blur of the downstream images: none, fixed, searched (paper: F1 87.95, 88.36, 89.84 on GE4K).

The other rows are controls that the paper lacks. A search that works must gain more than a random level;
`oracle` chooses the level using the label. In two rows the search compares fine detail alone, or may
choose the sharp image: the lowest level of its pre-training is sigma 0.
"""

from studies import common


def get_study(preset):
    """One pre-training run for all settings of the search, and one with sigma 0 among its levels."""
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
    about = study["methods"]["search(2)"] | {"paper": {}}
    study["methods"]["search(2), fine detail"] = about | {
        "finetune_overrides": {"search.setting": "search(2)", "search.high_pass": 1.0}
    }
    study["methods"]["search(2), sigma 0 is a level"] = about | {
        "pretrain_overrides": {"task.degrade": common.levels(preset, min_sigma=0.0)}
    }
    study |= {"title": "D2MAE: the blur of the downstream images", "reference": "none"}
    return study
