"""DeblurrMAE that starts from the weights of another network: ImageNet's MAE, a DeblurringMIM checkpoint, a timm ViT.

    python main.py --config=configs/deblur_mae_warm_start.py --config.init_from=mae_visualize_vit_base.pth \\
      --config.data.root=/my/images --workdir=runs/deblur_warm

What is taken, converted, left out and new is printed at the start (see `d2mae_warm_start.py`).
Expected: no published numbers; a fifteenth of the epochs from scratch is our choice, not the paper's.
"""

from configs import deblur_mae_thyroid


def get_config():
    """As from scratch, with 800 epochs."""
    config = deblur_mae_thyroid.get_config()
    config.init_from = ""
    config.optim.epochs = 800.0
    return config
