"""Disruptive Autoencoders with one disruption. Lost resolution alone (MIDL 2024, table 5).

    python main.py --config=configs/dae_downsampling.py --config.data.root="/data/lung=ct;/data/brain=mr" --workdir=runs/dae_downsampling

The paper: BTCV Dice 0.8489 (5 folds); all disruptions 0.8512.
"""

from configs import volumes


def get_config(preset="paper"):
    """No local masking."""
    config = volumes.get_config(preset)
    config.task.degrade = "resample.down_up(4)"
    config.task.local_mask = 0.0
    return config
