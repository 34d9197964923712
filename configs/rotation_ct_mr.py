"""Rotation alone, a baseline of Disruptive Autoencoders (MIDL 2024, table 4): tell by how many quarter turns a cube was turned.

    python main.py --config=configs/rotation_ct_mr.py --config.data.root="/data/lung=ct;/data/brain=mr" --workdir=runs/rotation

The paper: BTCV Dice 0.8356 (5 folds; from scratch 0.8343, DAE 0.8512).
"""

from configs import volumes


def get_config():
    """One of the three parts of `swin_ssl_ct_mr.py`."""
    config = volumes.pretext()
    config.task.contrast_weight = config.task.reconstruction_weight = 0.0
    config.model.rebuilds = False
    return config
