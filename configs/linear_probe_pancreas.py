"""Linear probe on pancreas ultrasound: LEPset, 3,500 images, 2 classes, stratified 5-fold cross-validation. MAE's recipe.

    python main.py --config=configs/linear_probe_pancreas.py --config.init_from=runs/d2mae \\
      --config.data.root=/my/pancreas --workdir=runs/pancreas_linear
"""

from configs import transfer


def get_config():
    """LARS at base rate 0.1 and batch 1024, 90 epochs."""
    config = transfer.linear_probe()
    config.data.split = "train+pool"
    config.data.val_split = "auto"
    config.data.test_split = "auto"
    return config
