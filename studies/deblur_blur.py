"""DeblurrMAE, kind of blur (paper, table 2, a picture: Gaussian is best, motion and defocus are worse than no blur)."""

from studies import common


def get_study(preset):
    """One row for each kind; the `cpu` preset blurs twice as far as the paper."""
    side = 9 if preset == "cpu" else 5
    kinds = {
        "no blur": "none",
        "Gaussian": common.gaussian(preset),
        "SRAD": "speckle.srad(40, 0.1)",
        "mean": f"blur.mean({side})",
        "median": f"blur.median({side})",
        "motion": f"blur.motion({side})",
        "defocus": f"blur.defocus({side})",
    }
    study = common.ablation(preset, "DeblurrMAE: kind of blur", {k: {"task.degrade": v} for k, v in kinds.items()})
    return study | {"reference": "no blur"}
