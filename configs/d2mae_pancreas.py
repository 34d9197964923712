"""D2MAE pre-training for pancreas (endoscopic) ultrasound (MICCAI 2025).

    python main.py --config=configs/d2mae_pancreas.py --config.data.root=/my/images --workdir=runs/d2mae

The paper: RadImageNet 21,639 + LEPset 8,000 = 29,639 images, 6,000 epochs at batch 1,024; then, fine-tuned
on LEPset in five folds: accuracy 87.43, macro-F1 87.41, AUROC 94.13.
Expected cost: 59 GFLOP per image with three channels, 1.0e19 in all.
Deviation: one gray channel (--config.model.in_chans=3 for the paper's three).
"""

from configs import d2mae_thyroid


def get_config():
    """As for the thyroid, with more images and fewer epochs."""
    config = d2mae_thyroid.get_config()
    config.optim.epochs = 6000.0
    return config
