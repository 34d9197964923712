"""Disruptive Autoencoders on CT and MR volumes (MIDL 2024).

    python main.py --config=configs/dae_ct_mr.py --config.data.root="/data/lung=ct;/data/brain=mr" --workdir=runs/dae

The paper: 9,513 volumes (CT and T1, T1ce, T2, FLAIR), Swin-UNETR 48 wide, cubes of 96, batch 16 over 8 GPUs, 20,000 steps; then,
fine-tuned, BTCV Dice 0.8512 (5 folds; 0.8343 from scratch), FeTA 0.842 (0.839). Differences of 0.003 on 30 scans are within noise.
Expected cost: `--plan` prints it. `dae_ct_mr.py:upstream` has the rates, lengths, resampling and masking of the published
commands (1,000 epochs, and 300 for a single disruption). It keeps the paper's contrast and the intended axes, because those
of the code are mistakes: --config.task.contrast=code and --config.model.layout=as_coded choose them.

One disruption alone (table 5; BTCV Dice over 5 folds, all disruptions 0.8512):
    dae_ct_mr.py:noise          0.8485
    dae_ct_mr.py:downsampling   0.8489
    dae_ct_mr.py:local_masking  0.8501. In the published code the full-resolution skip connection sees the clean cube, which is
                                the target, so the network can copy it. We leave that connection out;
                                --config.model.skip_input=disrupted restores it.
Ablations: noise --config.task.degrade="noise.gaussian_noise(variance=0.05, clip=False)|resample.down_up(4)"; factor down_up(2) or
(8); share of channels --config.task.local_mask=0.4; without contrast --config.task.contrast=none.
"""

from deblur_mae_jax.config import pick, volumes


def get_config(arguments=""):
    """All disruptions and the contrast of modalities, or one disruption."""
    disruptions, preset = pick(arguments, ("all", "noise", "downsampling", "local_masking"), ("paper", "upstream"))
    config = volumes(preset)
    if disruptions in ("noise", "downsampling"):
        config.task.local_mask = 0.0
    if disruptions == "noise":
        config.task.degrade = "noise.gaussian_noise(variance=0.1, clip=False)"
    if disruptions == "downsampling":
        config.task.degrade = config.task.degrade.rpartition("|")[2]
    if disruptions == "local_masking":
        config.task.degrade = "none"
        config.model.skip_input = "none"
    if preset == "upstream" and disruptions != "all":
        config.optim.epochs = 300.0
    return config
