r"""Segment your own CT or MR volumes, from a pre-trained Swin-UNETR or from scratch.

    python main.py --config=configs/segment_volumes.py --config.init_from=runs/dae \
      --config.data.root="/my/volumes=mr" --workdir=runs/segmenter

The folder holds `images/` and `masks/` with the same file names (or `imagesTr/` and `labelsTr/`), or a CSV
`path,mask,modality,group,split`. Missing splits are drawn, 3:1:1, never dividing a patient.
`--config.init_from=""` starts from scratch (then set the size: --config.model.variant=48, --config.image_size=96).
"""

from deblur_mae_jax.config import volume_segmentation


def get_config(preset="paper"):
    """The paper's recipe on any volumes."""
    return volume_segmentation(preset)
