"""ConvMAE (Gao et al. 2022) and Deblurring ConvMAE, the convolutional variant of DeblurrMAE's authors.

    python main.py --config=configs/convmae.py:deblur --config.data.root=/my/images --workdir=runs/convmae

    convmae.py           ConvMAE: nothing is degraded, loss on the masked patches, normalised targets
    convmae.py:deblur    Deblurring ConvMAE: Gaussian blur with sigma 1.1, loss on all patches, plain targets
    convmae.py:levels    a blur level drawn for every image, told as a token (D2MAE's blur on a ConvViT)

Published: fine-tuned with a U-Net++ for TN3K, ConvMAE reaches an IoU of 74.40 and Deblurring ConvMAE of 74.96; its
pre-training took 800 epochs of 280,000 images. ConvMAE's own command is batch 3,072 for 1,600 epochs; here 1,024.
Expected cost: 103 GFLOP per image with one channel; 115 million parameters.
Fine-tune it with `configs/convvit.py`. Its weights, ConvMAE's and DeblurringMIM's are read by `init_from`.
"""

from deblur_mae_jax.config import convmae, deblurring, pick


def get_config(arguments=""):
    """MAE's optimiser: base learning rate 1.5e-4, 40 epochs of warm-up, weight decay 0.05."""
    (input_,) = pick(arguments, ("clean", "deblur", "levels"))
    config = deblurring(convmae(), input_)
    if input_ != "clean":
        config.optim.epochs = 800.0
    return config
