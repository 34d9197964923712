"""SimCLR pre-training (Chen et al. 2020): a row of the papers' tables.

    python main.py --config=configs/simclr.py --config.data.root=/my/images --workdir=runs/simclr

DeblurrMAE fine-tunes ImageNet weights of ResNet-50 with 86.21, 83.81 and 92.16 (accuracy, F1, AUROC) on GE4K.
Pre-training on ultrasound is an addition.

    simclr.py                 ResNet-50
    simclr.py:vit             ViT-B/16
    simclr.py:deblur          the first view is blurred, the second clean
    simclr.py:upstream        batch 4096, 100 epochs, weight decay 1e-4, as the published command
    simclr.py:small           a ResNet 16 wide with five blocks at 64 pixels, 3,000 steps: 40 minutes on one CPU core.
                              Fine-tune it with `configs/resnet.py:small`. On BUS-BRA its AUROC was that of a small
                              D2MAE in two stages, 81.5 (docs/results.md)

Expected cost: 48 GFLOP per image (two views) with one channel. The paper scales the images to 0..1 without mean and
standard deviation (--config.data.mean="(0.0,)" --config.data.std="(1.0,)"); here they are normalised as everywhere. The
negatives are the images of the batch, or with `config.optim.accum_steps` those of one share.
"""

from deblur_mae_jax.config import contrastive, pick


def get_config(arguments=""):
    """The paper's recipe at batch 1,024, for as many images as the other pre-trainings."""
    network, input_, preset = pick(arguments, ("resnet", "vit"), ("clean", "deblur"), ("paper", "upstream", "small"))
    config = contrastive("simclr", network, preset)
    if preset == "paper":
        config.optim.epochs = 12000.0
    if input_ == "deblur":
        config.task.degrade = "blur.gaussian(sigma=1.1)"
    return config
