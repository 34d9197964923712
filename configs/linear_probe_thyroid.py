"""Linear probe on thyroid ultrasound: GE4K, 4,494 images, 2 classes, 3:1:1. MAE's recipe.

    python main.py --config=configs/linear_probe_thyroid.py --config.init_from=runs/d2mae \\
      --config.data.root=/my/thyroid --workdir=runs/thyroid_linear
"""

from configs import transfer


def get_config():
    """LARS at base rate 0.1 and batch 1024, 90 epochs."""
    config = transfer.linear_probe()
    config.data.split = "train+pool"
    config.data.val_split = "auto"
    config.data.test_split = "auto"
    return config
