"""Disruptive Autoencoders on CT and MR volumes, all disruptions (MIDL 2024).

    python main.py --config=configs/dae_ct_mr.py --config.data.root="/data/lung=ct;/data/brain=mr" --workdir=runs/dae

The paper: 9,513 volumes (CT and T1, T1ce, T2, FLAIR), Swin-UNETR 48 wide, cubes of 96, batch 16 over 8 GPUs, 20,000 steps; then,
fine-tuned, BTCV Dice 0.8512 (5 folds; 0.8343 from scratch), FeTA 0.842 (0.839). Differences of 0.003 on 30 scans are within noise.
Expected cost: `--dry_run` tells. `dae_ct_mr.py:upstream` is what the published commands do.
Ablations: noise --config.task.degrade="noise.gaussian_noise(variance=0.05, clip=False)|resample.down_up(4)"; factor down_up(2) or (8);
  share of channels --config.task.local_mask=0.4; without contrast --config.task.contrast=none.
"""

from configs import volumes


def get_config(preset="paper"):
    """All disruptions, contrast of modalities."""
    return volumes.get_config(preset)
