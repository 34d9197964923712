"""SimMIM (Xie et al. 2022) of a ViT, with or without deblurring. `simmim_swin.py` is that of a Swin.

    python main.py --config=configs/simmim.py --config.data.root=/my/images --workdir=runs/simmim

    simmim.py              ViT-B/16 with MAE's table of positions
    simmim.py:beit         the network of SimMIM's code: a BEiT with one table of relative positions for all blocks
    simmim.py:deblur       Gaussian blur with sigma 1.1; the sharp image is reconstructed, loss on all patches
    simmim.py:levels       a blur level drawn for every image, told as a token (D2MAE's blur)

60 % of the patches of 32 pixels are masked; the error is absolute and of the masked pixels. The encoder processes
all patches, so a step takes 1.8 times the operations of MAE's. SimMIM's features are poor in a linear or nearest-
neighbour probe, and good after fine-tuning.
Fine-tune it with `configs/finetune.py`, or `configs/beit.py` after `:beit`.

Deviation: the warm-up of the learning rate starts at 0 (published: 0.5 % of its largest value).
"""

from deblur_mae_jax.config import deblurring, pick, simmim


def get_config(arguments=""):
    """SimMIM's command: batch 2,048, 800 epochs, a tenth of the learning rate in the last hundred."""
    network, input_ = pick(arguments, ("vit", "beit"), ("clean", "deblur", "levels"))
    config = simmim("vit")
    if network == "beit":
        config.model.positions = "relative_shared"
    return deblurring(config, input_)
