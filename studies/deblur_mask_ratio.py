"""DeblurrMAE, share of the masked patches (paper, figure 2: 75 % is best)."""

from studies import common


def get_study(preset):
    """One row for each share."""
    rows = {f"{ratio:.0%} masked": {"task.mask_ratio": ratio} for ratio in (0.25, 0.5, 0.6, 0.75, 0.9)}
    return common.ablation(preset, "DeblurrMAE: share of the masked patches", rows)
