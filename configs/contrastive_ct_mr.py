"""Contrast alone, a baseline of Disruptive Autoencoders (MIDL 2024, table 4): tell which two views are of one cube.

    python main.py --config=configs/contrastive_ct_mr.py --config.data.root="/data/lung=ct;/data/brain=mr" \\
      --workdir=runs/contrastive

The paper: BTCV Dice 0.8367 (5 folds; from scratch 0.8343, DAE 0.8512). A batch of one cube has nothing to contrast.
"""

from configs import volumes


def get_config():
    """One of the three parts of `swin_ssl_ct_mr.py`."""
    config = volumes.pretext()
    config.task.rotation_weight = config.task.reconstruction_weight = 0.0
    config.model.rebuilds = False
    return config
