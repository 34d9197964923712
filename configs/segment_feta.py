r"""FeTA, 7 tissues of the fetal brain in MR, as Disruptive Autoencoders were fine-tuned on it (MIDL 2024).

    python main.py --config=configs/segment_feta.py --config.init_from=runs/dae --config.data.root="/data/feta=mr" \
      --workdir=runs/feta --config.data.fold=0

The paper, Dice over 5 folds with 100 / 50 / 20 % of the scans (--config.data.fraction=0.5): DAE 0.842 / 0.673 / 0.651, MAE 0.838 /
0.664 / 0.625, from scratch 0.839 / 0.662 / 0.618. The published code validates on random crops by default, so these
may be Dice of crops; here whole volumes are evaluated.

Without `init_from` the network has MONAI's patch embedding and merging order. DAE's own code trains from scratch the network that it
pre-trains: --config.model.patch_embed=unet_basic --config.model.merge_order=legacy
"""

from deblur_mae_jax.config import volume_segmentation


def get_config(preset="paper"):
    """Voxels as they are, standardised over non-zero ones."""
    config = volume_segmentation(preset)
    config.data.test_split = "none"
    return config
