"""The self-supervised pre-training of Swin-UNETR (Tang et al. 2022), a baseline of Disruptive Autoencoders.

    python main.py --config=configs/swin_ssl_ct_mr.py --config.data.root="/data/lung=ct;/data/brain=mr" --workdir=runs/swin_ssl

Rotation, contrast of two views and reconstruction of what was cut out, weighted 1 : 1 : 1. DAE's paper, BTCV Dice over 5 folds
(from scratch 0.8343, DAE 0.8512):
    swin_ssl_ct_mr.py              0.8472   all three
    swin_ssl_ct_mr.py:rotation     0.8356   predicts by how many quarter turns the cube was rotated
    swin_ssl_ct_mr.py:contrastive  0.8367   recognises two views of the same cube; needs more than one cube per batch
The published commands: 100,000 steps at a rate of 6e-6, weight decay 0.1, one cube per GPU. The contrast here is over the whole
batch of all devices; the published code contrasts within each GPU. Cubes are drawn anywhere; the published code crops each
volume to its foreground first.
"""

from deblur_mae_jax.config import pick, pretext


def get_config(arguments=""):
    """MONAI's encoder, all three heads or one of them."""
    (heads,) = pick(arguments, ("all", "rotation", "contrastive"))
    config = pretext()
    if heads != "all":
        config.task.reconstruction_weight = 0.0
        config.model.rebuilds = False
    if heads == "rotation":
        config.task.contrast_weight = 0.0
    if heads == "contrastive":
        config.task.rotation_weight = 0.0
    return config
