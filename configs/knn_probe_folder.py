"""Nearest neighbours on frozen features: a first look at what an encoder knows, in a minute.

    python main.py --config=configs/knn_probe_folder.py --config.init_from=runs/d2mae \\
      --config.data.root=/my/labelled --workdir=runs/knn

`--config.probe.kind=logistic` fits a logistic regression instead.
"""

from ml_collections import ConfigDict

from configs import transfer


def get_config():
    """Weighted neighbours by cosine; their number is chosen on the validation images."""
    config = transfer.get_config()
    config.task.name = "probe"
    config.probe = ConfigDict()
    config.probe.kind = "knn"  # knn | logistic
    config.probe.pool = "mean"  # mean of the patch tokens | cls
    config.probe.neighbours = (1, 5, 20, 50)
    config.probe.strengths = (1e-4, 1e-3, 1e-2, 0.1, 1.0)  # C of the logistic regression
    config.data.split = "train+pool"
    config.data.val_split = "auto"
    config.data.test_split = "auto"
    return config
