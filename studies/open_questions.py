"""What the papers leave open: where the blur is applied, which patches count, what is reconstructed, which sigmas.

    python scripts/study.py studies/open_questions.py --preset=cpu --output=runs/open_questions

The reference is DeblurrMAE with its Gaussian, or, for the levels, D2MAE. The papers report none of these rows.
"""

from studies import common


def get_study(preset):
    """One row per question and answer."""
    study = common.preset(preset)
    gaussian = {"task.degrade": common.gaussian(preset)}
    answers = {
        "DeblurrMAE": gaussian,
        "blurred before the crop": gaussian | {"task.blur_site": "native"},
        "blurred after the resize": gaussian | {"task.blur_site": "network"},
        "loss on masked patches": gaussian | {"task.loss_on": "masked"},
        "blurred target": gaussian | {"task.target": "degraded"},
    }
    study["methods"] = {
        name: {"pretrain": "deblur_mae_thyroid", "pretrain_overrides": fields, "paper": {}}
        for name, fields in answers.items()
        if preset != "cpu" or name != "blurred after the resize"  # as in the first row there
    }
    for name, degrade in (
        ("D2MAE", common.levels(preset)),
        ("D2MAE, sigma 0.3 to 2.3", common.levels(preset, 2.3, 0.2, 0.3)),
        ("D2MAE, sigma 0 to 1.1", common.levels(preset, 1.1, 0.1, 0.0)),
    ):
        study["methods"][name] = {
            "pretrain": "d2mae_thyroid", "pretrain_overrides": {"task.degrade": degrade}, "paper": {},
        }  # fmt: skip
    study |= {"title": "What the papers leave open", "reference": "DeblurrMAE"}
    return study
