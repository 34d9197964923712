"""SimMIM (Xie et al. 2022) of a Swin Transformer, with or without deblurring.

    python main.py --config=configs/simmim_swin.py --config.data.root=/my/images --workdir=runs/simmim_swin

    simmim_swin.py           Swin-B at 192 pixels, windows of 6 tokens
    simmim_swin.py:deblur    Gaussian blur with sigma 1.1; the sharp image is reconstructed, loss on all patches

60 % of the patches of 32 pixels are masked; the error is absolute and of the masked pixels. A Swin has no tokens for
the code of a blur level, so there is no `:levels`.
Fine-tune it with `configs/swin.py:b --config.image_size=224`, whose windows of 7 fit 224 pixels: the relative positions
are resized. Without `image_size` it stays at 192 pixels.
Deviation: the learning rate starts and ends at 0 (published: 0.5 % and 5 % of its largest value).
"""

from deblur_mae_jax.config import deblurring, pick, simmim


def get_config(arguments=""):
    """SimMIM's command: batch 2,048, 800 epochs, cosine."""
    (input_,) = pick(arguments, ("clean", "deblur"))
    config = simmim("swin2d")
    config.model.variant = "B"
    return deblurring(config, input_)
