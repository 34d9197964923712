"""Denoising MAE pre-training for thyroid ultrasound, the control of DeblurrMAE (MICCAI 2023).

    python main.py --config=configs/denoising_mae_thyroid.py --config.data.root=/my/images --workdir=runs/denoise

The paper: ViT-B/16, 10,675 images, 12,000 epochs at batch 256; fine-tuned: accuracy 80.38, F1 77.99 (binary),
AUROC 84.38. The paper does not state its noise level; 0.25 on the 0..1 scale is the value of Wu et al. (2022).
Expected cost: 59 GFLOP per image with three channels, 7.4e18 in all.
`denoising_mae_thyroid.py:small` pre-trains a small network on a CPU: a ViT 192 wide and 6 deep at 96 pixels, 4,000 steps at batch 64.
Fine-tune it with configs/finetune.py:small.

Deviation: one gray channel (--config.model.in_chans=3 for the paper's three).
"""

from deblur_mae_jax.config import pick, pretraining


def get_config(arguments=""):
    """Gaussian noise instead of blur; the loss is on all patches."""
    (size,) = pick(arguments, ("paper", "small"))
    config = pretraining(size)
    config.task.degrade = "noise.gaussian_noise(std=0.25)"
    config.optim.epochs = 12000.0
    return config
