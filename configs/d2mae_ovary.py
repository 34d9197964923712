"""D2MAE pre-training for ovary ultrasound (MICCAI 2025).

    python main.py --config=configs/d2mae_ovary.py --config.data.root=/my/images --workdir=runs/d2mae

The paper: 3,593 ovary images of RadImageNet, 16,000 epochs at batch 1,024; then, fine-tuned on MMOTU (8
classes, official split): accuracy 80.47, macro-F1 75.70, AUROC 93.17.
Expected cost: 59 GFLOP per image with three channels, 2.9e18 in all.
Deviation: one gray channel (--config.model.in_chans=3 for the paper's three).
"""

from configs import d2mae_thyroid


def get_config():
    """As for the thyroid, with fewer images and more epochs."""
    config = d2mae_thyroid.get_config()
    config.optim.epochs = 16000.0
    return config
