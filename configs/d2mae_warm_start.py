"""D2MAE that starts from the weights of another network: ImageNet's MAE, a timm or Hugging Face ViT, a DeblurrMAE.

    python main.py --config=configs/d2mae_warm_start.py --config.init_from=mae_visualize_vit_base.pth \\
      --config.data.root=/my/images --workdir=runs/d2mae_warm

What is taken, converted, left out and new is printed at the start. Three-channel kernels become one-channel ones that
see a gray image alike; the blur token, and a decoder that the file has not, start anew. The sizes must be
those of the file (ViT-B/16 here). Files of MAE's authors with the decoder in them are named `mae_visualize_*`.
Expected: no published numbers; a tenth of the epochs from scratch is our choice, not the paper's.
"""

from configs import d2mae_thyroid


def get_config():
    """As from scratch, with a tenth of the epochs."""
    config = d2mae_thyroid.get_config()
    config.init_from = ""
    config.optim.epochs = 800.0
    return config
