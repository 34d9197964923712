"""The self-supervised pre-training of Swin-UNETR (Tang et al. 2022), a baseline of Disruptive Autoencoders.

    python main.py --config=configs/swin_ssl_ct_mr.py --config.data.root="/data/lung=ct;/data/brain=mr" --workdir=runs/swin_ssl

Rotation, contrast of two views and reconstruction of what was cut out, weighted 1 : 1 : 1. DAE's paper: BTCV Dice 0.8472 (5 folds;
from scratch 0.8343, DAE 0.8512). The published commands: 100,000 steps at a rate of 6e-6, weight decay 0.1, one cube per GPU.
The contrast is over the whole batch of all devices; the published code contrasts within each GPU.
"""

from configs import volumes


def get_config():
    """MONAI's encoder, all three heads."""
    return volumes.pretext()
