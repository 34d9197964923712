r"""Segment 2-D images with a U-Net++ on the encoder of any classifier, pre-trained or not.

    python main.py --config=configs/unetpp.py:convvit --config.init_from=runs/convmae --config.data.root=/my/images \
      --workdir=runs/unetpp

    unetpp.py            encoder ResNet-50
    unetpp.py:convvit    DeblurringMIM's network for TN3K, with ConvMAE's or Deblurring ConvMAE's weights
    other encoders       convnext, swin, vit, beit

The folder is as for `segment_images.py`. Published for TN3K (614 test images): IoU 74.40 with ConvMAE and 74.96 with
Deblurring ConvMAE. Each image is evaluated as a whole, at the size at which it is read; the published code evaluates at 256
pixels.
The published network takes images of 512 pixels: --config.image_size=512 (else the size is that of `init_from`).
Deviations: AdamW without weight decay for Adam; the Dice loss of background and lesion for each image, not of the
lesion for the whole batch (--config.task.include_background=False counts the lesion alone); crops and flips for its
augmentation; a norm on each map; an epsilon of 1e-6 in the last blocks of the ConvViT (1e-5); the 95 % Hausdorff
distance is between surfaces (the published one counts every pixel of the masks, which makes it smaller); no relative positions
and no layer scale in the blocks of the ConvViT.
"""

from deblur_mae_jax.config import pick, segmenter

ENCODERS = {
    "resnet": "resnet",
    "convnext": "convnext",
    "swin": "swin2d",
    "vit": "vit",
    "beit": "beit",
    "convvit": "convvit",
}


def get_config(arguments=""):
    """DeblurringMIM's recipe: learning rate 1e-4, batch 16, until 100 epochs without a better Dice."""
    (encoder,) = pick(arguments, tuple(ENCODERS))
    config = segmenter(ENCODERS[encoder], "unetpp")
    config.optim.epochs = 1000.0
    return config
