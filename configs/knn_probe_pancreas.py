"""Nearest neighbours on frozen features of pancreas ultrasound: LEPset, 3,500 images, 2 classes, stratified 5-fold cross-validation.

    python main.py --config=configs/knn_probe_pancreas.py --config.init_from=runs/d2mae \\
      --config.data.root=/my/pancreas --workdir=runs/pancreas_knn
"""

from configs import knn_probe_folder


def get_config():
    """As `knn_probe_folder.py`."""
    config = knn_probe_folder.get_config()
    return config
