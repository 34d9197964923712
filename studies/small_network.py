r"""Small networks as good as two CPU cores allow: D2MAE and MAE, a ViT 192 wide and 6 deep at 96 pixels; and SimCLR.

    python scripts/study.py studies/small_network.py --preset=cpu --output=runs/small_busbra \
      --pretrain_root=others.csv --finetune_root='busbra_{fold}.csv' --folds=1,2,3,4 --ensembles

Compare it with `python -m benchmarks.hand_made_features`. The papers have no such table. On one core a pre-training
took 23 minutes and a fine-tuning on 900 images two; `--preset=full` is a ViT-B.

In two stages, the second on the training images of each fold and other images of the same organ, at half the rate:

    python scripts/study.py studies/small_network.py --preset=cpu --output=runs/long --only=D2MAE \
      --pretrain_root=others.csv --finetune_root='busbra_{fold}.csv' --folds=1 --seeds=0 \
      --set_pretrain optim.steps=12000
    python scripts/study.py studies/small_network.py --preset=cpu --output=runs/stages --only=D2MAE --ensembles \
      --pretrain_root='breast_{fold}.csv' --finetune_root='busbra_{fold}.csv' --folds=1,2,3,4 --seeds=0,1,2 \
      --set_pretrain init_from=runs/long/pretrain_... --set_pretrain optim.steps=2000 --set_pretrain optim.base_lr=2e-3

The first stage has two pre-trainings (`--pretrain_seeds=0` and `1`), and each has a second stage of the same seed; the
ensemble is that of all six networks of a fold. MMOTU, whose first stage is that of seed 0, has its own training images
as `--pretrain_root` of the second one, without `--folds`, and three fine-tunings.

SimCLR trains a ResNet 16 wide with five blocks on views of 64 pixels, and is fine-tuned at 96. On one core its
pre-training took 40 minutes. It was added to give an ensemble networks of another kind:

    python scripts/study.py studies/small_network.py --preset=cpu --output=runs/small_busbra --only=SimCLR --ensembles \
      --pretrain_root=others.csv --finetune_root='busbra_{fold}.csv' --folds=1,2,3,4 --seeds=0,1,2

Networks of two kinds, judged again on other images: five folds over all 1,174 images of MMOTU with a label, each
patient in one fold (scikit-learn's `StratifiedGroupKFold(5, shuffle=True, random_state=0)`), pre-training on the other
sets alone. The comparison that counts, written down before any network was trained, is the AUROC of the mean of both
ensembles (three SimCLR, three D2MAE, equal weights) minus that of hand-made features:

    python scripts/study.py studies/small_network.py --preset=cpu --output=runs/folds_mmotu --only=SimCLR --ensembles \
      --pretrain_root=not_mmotu.csv --finetune_root='mmotu_{fold}.csv' --folds=0,1,2,3,4 --seeds=0,1,2
    python scripts/study.py studies/small_network.py --preset=cpu --output=runs/folds_mmotu --only=D2MAE --ensembles \
      --pretrain_root=not_mmotu.csv --finetune_root='mmotu_{fold}.csv' --folds=0,1,2,3,4 --seeds=0,1,2 \
      --set_pretrain optim.steps=12000

The same once more, from the same pre-trainings, with the classes drawn equally often (`--set data.balance=sampling`),
because hand-made features weigh all classes equally and the networks above do not. Written down before the first of
these fine-tunings, with the results above known: nothing else changes, and two comparisons with hand-made features
count, AUROC and macro F1 of the mean of both ensembles. As this is the second look at these patients, each is called
clear if its 97.5 % interval leaves out zero. (Neither did: docs/results.md.)
"""

from deblur_mae_jax.config.values import SMALL, SMALL_RESNET, SMALL_SIMCLR
from studies import common

_PRETRAIN = {
    "image_size": 96, "model.patch_size": 12, "model.embed_dim": 192, "model.depth": 6, "model.num_heads": 3,
    "model.decoder_embed_dim": 96, "model.decoder_depth": 2, "model.decoder_num_heads": 4,
    "optim.batch_size": 64, "optim.base_lr": 4e-3, "optim.steps": 4000, "checkpoint.every_epochs": 10.0,
}  # fmt: skip
# The recipe of configs/finetune.py:small.
_FINETUNE = {"data.num_threads": 2, "report.every_epochs": 1000.0, "log.tensorboard": False}
_SIMCLR = SMALL_SIMCLR | {
    "data.num_threads": 2, "checkpoint.every_epochs": 20.0, "report.every_epochs": 1000.0, "log.tensorboard": False,
}  # fmt: skip


def get_study(preset):
    """All methods, each fine-tuned by the recipe for small networks."""
    study = common.preset(preset)
    small = preset == "cpu"
    pretrain, study["pretrain"] = study["pretrain"], {}
    if small:
        study["finetune"] = _FINETUNE
    rows = {"D2MAE": ("d2mae_thyroid", {"task.degrade": common.levels(preset)}), "MAE": ("mae_thyroid", {})}
    study["methods"] = {
        name: {"pretrain": config, "pretrain_overrides": (pretrain | _PRETRAIN if small else {}) | fields,
               "finetune": "finetune:small", "paper": {}}
        for name, (config, fields) in rows.items()
    }  # fmt: skip
    study["methods"]["SimCLR"] = {
        "pretrain": "simclr", "pretrain_overrides": _SIMCLR if small else {}, "finetune": "resnet:50",
        "finetune_overrides": SMALL | ({"image_size": 96, **SMALL_RESNET} if small else {}), "paper": {},
    }  # fmt: skip
    return study | {"title": "A small network"}
