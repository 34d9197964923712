r"""Segment 2-D images with a UPerNet on the encoder of any classifier, pre-trained or not.

    python main.py --config=configs/upernet.py:swin --config.init_from=runs/simmim_swin --config.data.root=/my/images \
      --workdir=runs/upernet

    upernet.py           encoder ViT-B: its maps are enlarged and halved, as in BEiT's and MAE's code
    other encoders       resnet, convnext, swin, beit, convvit

The folder is as for `segment_images.py`. A second head on the third map adds 0.4 times its cross-entropy to the loss.
Each image is evaluated as a whole, at the size at which it is read.
Deviations from the published recipe, whose values are in brackets: cosine decay of the rate (polynomial); crops and
flips as augmentation (its own); a decoder 512 wide (768); batches of 16 (10); 100 epochs with 5 of warm-up (1,500
steps of warm-up); whole images at the encoder's size (crops of 512 pixels, evaluated by a sliding window).
"""

from deblur_mae_jax.config import pick, segmenter

ENCODERS = {
    "vit": "vit",
    "resnet": "resnet",
    "convnext": "convnext",
    "swin": "swin2d",
    "beit": "beit",
    "convvit": "convvit",
}


def get_config(arguments=""):
    """Cross-entropy; learning rate 1e-4, layer decay 0.75 (ViT), batch 16."""
    (encoder,) = pick(arguments, tuple(ENCODERS))
    return segmenter(ENCODERS[encoder], "upernet")
