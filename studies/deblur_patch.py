"""DeblurrMAE, side of the patches (paper, figure 3: 16 of 224 pixels is best)."""

from studies import common


def get_study(preset):
    """One row for each side; the images of the `cpu` preset are 64 pixels wide."""
    sides = (4, 8, 16) if preset == "cpu" else (8, 16, 28)
    rows = {f"patches of {side} pixels": {"model.patch_size": side} for side in sides}
    return common.ablation(preset, "DeblurrMAE: side of the patches", rows)
