"""MAE pre-training for thyroid ultrasound, the baseline of DeblurrMAE (MICCAI 2023) and D2MAE (2025).

    python main.py --config=configs/mae_thyroid.py --config.data.root=/my/images --workdir=runs/mae

The papers: ViT-B/16, 10,675 images, 12,000 epochs at batch 256; fine-tuned: accuracy 89.45, F1 87.54 (binary),
AUROC 95.54. He et al. normalise the pixels of each patch in the target; so does this config
(--config.task.norm_pix_loss=False for the plain target, with which the code of DeblurringMIM trained this row).
Expected cost: 59 GFLOP per image with three channels, 7.4e18 in all.
`mae_thyroid.py:small` pre-trains a small network on a CPU: a ViT 192 wide and 6 deep at 96 pixels, 4,000 steps at batch 64.
Fine-tune it with configs/finetune.py:small.

Deviation: one gray channel (--config.model.in_chans=3 for the paper's three).
"""

from deblur_mae_jax.config import pick, pretraining


def get_config(arguments=""):
    """Nothing is degraded; the loss is on the masked patches."""
    (size,) = pick(arguments, ("paper", "small"))
    config = pretraining(size)
    config.task.degrade = "none"
    config.task.loss_on = "masked"
    config.task.norm_pix_loss = True
    config.optim.epochs = 12000.0
    return config
