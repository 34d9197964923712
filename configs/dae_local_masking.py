"""Disruptive Autoencoders with one disruption. Local masking alone (MIDL 2024, table 5).

    python main.py --config=configs/dae_local_masking.py --config.data.root="/data/lung=ct;/data/brain=mr" --workdir=runs/dae_local

The paper: BTCV Dice 0.8501 (5 folds); all disruptions 0.8512. In the published code the full-resolution skip connection sees the
clean cube, which is the target: a path to copy it. Here that connection is left out; --config.model.skip_input=disrupted brings
it back.
"""

from configs import volumes


def get_config(preset="paper"):
    """Clean input, masked channels, no way around them."""
    config = volumes.get_config(preset)
    config.task.degrade = "none"
    config.model.skip_input = "none"
    return config
