"""DeblurrMAE and MAE, share of the images used for pre-training (paper, figure 3)."""

from studies import common

SHARES = (0.1, 0.25, 0.5, 1.0)


def get_study(preset):
    """A row for each share and method. All rows take equally many steps in the `cpu` preset."""
    study = common.ablation(preset, "Share of the images used for pre-training", {})
    for name, config, changes in (
        ("DeblurrMAE", "deblur_mae_thyroid", {"task.degrade": common.gaussian(preset)}),
        ("MAE", "mae_thyroid", {}),
    ):
        for share in SHARES:
            row = {"pretrain": config, "pretrain_overrides": changes | {"data.fraction": share}, "paper": {}}
            study["methods"][f"{name} on {share:.0%}"] = row
    return study
