r"""The method comparison: from scratch, MAE, denoising MAE, DeblurrMAE (Gaussian, SRAD), D2MAE (token, addition, none).

    python scripts/study.py studies/methods.py --preset=cpu --output=runs/methods

On phantoms, whose classes are known without error, with the steps and the number of images of the public sets
(docs/results.md), 54 labelled training images and 360 test images of 120 simulated patients:

    python scripts/study.py studies/methods.py --preset=cpu --output=runs/methods_phantoms --pretrain_seeds=0,1,2 \
      --set_pretrain data.num_images=4684 --set_pretrain optim.steps=2000 --set_pretrain optim.batch_size=64 \
      --set_pretrain optim.base_lr=6e-3 --set_pretrain checkpoint.every_epochs=10.0 \
      --set data.num_images=1800 --set data.fraction=0.05

The paper's numbers are for end-to-end fine-tuning on GE4K (thyroid). F1 is that of the malignant class; for D2MAE it is
macro F1.
"""

from studies import common


def get_study(preset):
    """Methods, each with its pre-training and fine-tuning run."""
    study = common.preset(preset)

    def method(config, paper, **pretrain):
        return {"pretrain": config, "pretrain_overrides": pretrain, "paper": paper}

    study["methods"] = {
        "from scratch": {"pretrain": None, "paper": {}},
        "MAE": method("mae_thyroid", {"accuracy": 89.45, "f1_binary": 87.54, "auroc": 95.54}),
        "denoising MAE": method("denoising_mae_thyroid", {"accuracy": 80.38, "f1_binary": 77.99, "auroc": 84.38}),
        "DeblurrMAE, Gaussian": method(
            "deblur_mae_thyroid",
            {"accuracy": 90.19, "f1_binary": 88.48, "auroc": 96.08},
            **{"task.degrade": common.gaussian(preset)},
        ),
        "DeblurrMAE, SRAD": method(
            "deblur_mae_thyroid",
            {"accuracy": 90.07, "f1_binary": 88.13, "auroc": 95.87},
            **{"task.degrade": "speckle.srad(40, 0.1)", "task.blur_site": "native"},
        ),
        "D2MAE": method(
            "d2mae_thyroid",
            {"accuracy": 90.38, "f1_macro": 89.84, "auroc": 96.21},
            **{"task.degrade": common.levels(preset)},
        ),
        "D2MAE, added level": method(
            "d2mae_thyroid", {}, **{"task.degrade": common.levels(preset), "model.conditioning": "addition"}
        ),
        "D2MAE, level not told": method(
            "d2mae_thyroid", {}, **{"task.degrade": common.levels(preset), "model.conditioning": "none"}
        ),
    }
    study |= {"title": "Methods", "reference": "MAE"}
    return study
