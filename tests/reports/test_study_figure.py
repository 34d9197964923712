"""The picture of a study."""

import numpy as np

from deblur_mae_jax.reports import study_figure

ROWS = [
    {"method": "MAE", "auroc": {"mean": 71.0, "low": 65.0, "high": 77.0}},
    {"method": "D2MAE", "auroc": {"mean": 75.0, "low": np.nan, "high": np.nan},
     "auroc_difference": {"value": 4.0, "low": -1.0, "high": 9.0}},
    {"method": "noise", "auroc": {"mean": 60.0, "low": 55.0, "high": 65.0},
     "auroc_difference": {"value": -11.0, "low": -15.0, "high": -7.0}},
    {"method": "of others"},
]  # fmt: skip


def test_methods_stand_in_the_order_of_their_means():
    left, right = study_figure.figure(ROWS, {"MAE": [70.0, 72.0]}, "MAE").axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["noise", "MAE, the reference", "D2MAE"]
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in right.lines]
    assert ([4.0], [2]) in drawn and ([-15.0, -7.0], [0, 0]) in drawn
    dots = [list(line.get_xdata()) for line in left.lines if line.get_marker() == "o"]
    assert [70.0, 72.0] in dots


def test_without_a_reference_there_is_one_panel():
    plain = [{k: v for k, v in row.items() if not k.endswith("difference")} for row in ROWS]
    assert len(study_figure.figure(plain, {}, "").axes) == 1
    assert study_figure.measure_of([{"method": "of others"}]) == ""
