"""D2MAE pre-training for ovary ultrasound (MICCAI 2025).

    python main.py --config=configs/d2mae_ovary.py --config.data.root=/my/images --workdir=runs/d2mae

The paper: 3,593 ovary images of RadImageNet, 16,000 epochs at batch 1,024; then, fine-tuned on MMOTU (8 classes, official split):
accuracy 80.47, macro F1 75.70, AUROC 93.17.
Expected cost: 59 GFLOP per image with three channels, 2.9e18 in all.

`d2mae_ovary.py:warm_start` starts from the weights of another network (--config.init_from): ImageNet's MAE, a timm or Hugging Face ViT, a
DeblurrMAE. At its start the run prints which weights are loaded, converted, left out
and new. Training for a tenth of the epochs is our choice, not the paper's.
Checkpoints of MAE's authors that include the decoder are named `mae_visualize_*`.
Deviation: one gray channel (--config.model.in_chans=3 for the paper's three).
"""

from deblur_mae_jax.config import pick, pretraining


def get_config(arguments=""):
    """Levels sigma = 0.1 t, t = 1..11, drawn per image and given to the network as a token."""
    (start,) = pick(arguments, ("from_scratch", "warm_start"))
    config = pretraining()
    config.task.degrade = "blur.gaussian_levels(max_sigma=1.1, step=0.1)"
    config.model.conditioning = "token"
    config.optim.batch_size = 1024
    config.optim.epochs = 16000.0 if start == "from_scratch" else 1600.0
    config.checkpoint.every_epochs = 50.0
    return config
