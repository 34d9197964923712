r"""Segment ultrasound images with a pre-trained ViT and a convolutional decoder, or from scratch.

    python main.py --config=configs/segment_images.py --config.init_from=runs/d2mae --config.data.root=/my/images \
      --workdir=runs/segmenter

The folder holds `images/` and `masks/` with the same names (or classes beside `masks/<class>/`), or a CSV
`path,mask,group,split` (--config.data.name=manifest). A mask holds one whole number per class, or 0 and 255. Degradation and
blur search are inherited from the network as in fine-tuning a classifier. Each image
is evaluated as a whole, at the size at which it is read (`data.max_side`).
`--config.init_from=""` starts from scratch (then set the size: --config.model.variant=B, --config.image_size=224).
"""

from deblur_mae_jax.config import segmentation


def get_config():
    """Rates and layer decay of MAE's fine-tuning, Dice and cross-entropy; no drop path, RandAugment or erasing."""
    return segmentation()
