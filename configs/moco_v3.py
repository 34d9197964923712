"""MoCo v3 pre-training (Chen, Xie and He 2021): a row of the papers' tables.

    python main.py --config=configs/moco_v3.py --config.data.root=/my/images --workdir=runs/moco_v3

DeblurrMAE and D2MAE fine-tune it with 87.08, 84.55 and 92.95 (accuracy, F1, AUROC) on GE4K, and with an F1 of 83.38 on
LEPset and 71.68 on MMOTU. They do not say for how many steps they pre-train.

    moco_v3.py                ViT-B/16, AdamW
    moco_v3.py:resnet         ResNet-50, LARS
    moco_v3.py:deblur         the network sees blurred views, its momentum copy the clean ones
    moco_v3.py:upstream       batch 4096 and 300 epochs, as the published command

Expected cost: 280 GFLOP per image (two views) with one channel. Our batch is 1,024; the negatives are the images of the
batch. With `config.optim.accum_steps` they are those of one share only. MoCo v3's ViT-S has 12 heads:
--config.model.variant=S --config.model.num_heads=12. A crop of 8 % of an image may leave the lesion out;
--config.data.crop_scale="(0.2, 1.0)" keeps more.
"""

from deblur_mae_jax.config import contrastive, pick


def get_config(arguments=""):
    """The paper's recipe, for as many images as the other pre-trainings; its own 300 epochs are for ImageNet."""
    network, input_, preset = pick(arguments, ("vit", "resnet"), ("clean", "deblur"), ("paper", "upstream"))
    config = contrastive("moco_v3", network, preset)
    if preset == "paper":
        config.optim.epochs = 12000.0
    if input_ == "deblur":
        config.task.degrade = "blur.gaussian(sigma=1.1)"
    return config
