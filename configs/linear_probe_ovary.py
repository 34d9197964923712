"""Linear probe on ovary ultrasound: MMOTU, 1,469 images, 8 classes, the official split. MAE's recipe.

    python main.py --config=configs/linear_probe_ovary.py --config.init_from=runs/d2mae \\
      --config.data.root=/my/ovary --workdir=runs/ovary_linear
"""

from configs import transfer


def get_config():
    """LARS at base rate 0.1 and batch 1024, 90 epochs."""
    config = transfer.linear_probe()
    config.data.name = "manifest"
    config.select.metric = "f1_macro"
    return config
