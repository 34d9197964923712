"""Nearest neighbours on frozen features of ovary ultrasound: MMOTU, 1,469 images, 8 classes, the official split.

    python main.py --config=configs/knn_probe_ovary.py --config.init_from=runs/d2mae \\
      --config.data.root=/my/ovary --workdir=runs/ovary_knn
"""

from configs import knn_probe_folder


def get_config():
    """As `knn_probe_folder.py`."""
    config = knn_probe_folder.get_config()
    config.data.name = "manifest"
    config.data.split = "train"
    config.data.val_split = "val"
    config.data.test_split = "test"
    config.select.metric = "f1_macro"
    return config
