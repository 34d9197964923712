"""Nearest neighbours on frozen features of thyroid ultrasound: GE4K, 4,494 images, 2 classes, 3:1:1.

    python main.py --config=configs/knn_probe_thyroid.py --config.init_from=runs/d2mae \\
      --config.data.root=/my/thyroid --workdir=runs/thyroid_knn
"""

from configs import knn_probe_folder


def get_config():
    """As `knn_probe_folder.py`."""
    config = knn_probe_folder.get_config()
    return config
