"""Disruptive Autoencoders with one disruption. Noise alone (MIDL 2024, table 5).

    python main.py --config=configs/dae_noise.py --config.data.root="/data/lung=ct;/data/brain=mr" --workdir=runs/dae_noise

The paper: BTCV Dice 0.8485 (5 folds); all disruptions 0.8512.
"""

from configs import volumes


def get_config(preset="paper"):
    """No local masking."""
    config = volumes.get_config(preset)
    config.task.degrade = "noise.gaussian_noise(variance=0.1, clip=False)"
    config.task.local_mask = 0.0
    return config
