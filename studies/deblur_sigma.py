"""DeblurrMAE, sigma of the Gaussian (paper, table 2, a picture: 1.1 is best, and larger ones are quickly worse)."""

from studies import common

SIGMAS = (0.3, 0.7, 1.1, 1.5, 2.2, 3.3)


def get_study(preset):
    """One row for each sigma; the `cpu` preset doubles it."""
    rows = {f"sigma {sigma:g}": {"task.degrade": common.gaussian(preset, sigma)} for sigma in SIGMAS}
    return common.ablation(preset, "DeblurrMAE: sigma of the Gaussian", rows)
