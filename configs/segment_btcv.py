r"""BTCV, 13 abdominal organs in CT, as Disruptive Autoencoders were fine-tuned on it (MIDL 2024).

    python main.py --config=configs/segment_btcv.py --config.init_from=runs/dae --config.data.root="/data/btcv=ct" \
      --workdir=runs/btcv --config.data.fold=0

The paper, Dice over 5 folds: DAE 0.8512, Swin-UNETR SSL 0.8472, MAE 0.8448, contrastive 0.8367, rotation 0.8356, from scratch
0.8343; on the public leader board (an ensemble of 20 models) 0.921, HD 16.82 mm, surface distance 0.654 mm. The
paper gives no intervals, and 0.003 on 30 scans is within noise. `segment_btcv.py:upstream` follows the published
commands (1,000 epochs). The foreground is not cropped beforehand, because crops are drawn around labelled voxels and
voxels above the window anyway.

Without `init_from` the network has MONAI's patch embedding and merging order. DAE's own code trains from scratch the network that it
pre-trains: --config.model.patch_embed=unet_basic --config.model.merge_order=legacy
"""

from deblur_mae_jax.config import volume_segmentation


def get_config(preset="paper"):
    """1.5 x 1.5 x 2 mm, a soft-tissue window."""
    config = volume_segmentation(preset)
    config.data.spacing = (1.5, 1.5, 2.0)
    config.data.ct_window = (-175.0, 250.0)
    config.data.test_split = "none"  # five folds train and validate, as in the paper
    if preset == "upstream":
        config.optim.epochs = 1000.0
        config.report.every_epochs = 5.0
    return config
