"""What a test set can detect, and tests of differences without variance."""

import numpy as np
import pytest

from deblur_mae_jax.metrics import statistics


@pytest.mark.parametrize(
    ("a", "b"),
    [([20 / 30, 23 / 30, 26 / 30], [19 / 30, 22 / 30, 25 / 30]), ([0.7, 0.8, 0.9], [0.6, 0.7, 0.8]),
     ([21 / 30, 23 / 30], [20 / 30, 22 / 30])],
)  # fmt: skip
def test_folds_that_differ_equally_have_no_t_test(a, b):
    """Their variance is a rounding error, by which a difference may not be divided."""
    assert np.isnan(statistics.corrected_t_test(a, b, 90, 30)).all()


def test_equal_folds_do_not_differ():
    assert statistics.corrected_t_test([0.1 + 0.2, 0.7], [0.3, 0.7], 90, 30) == (0.0, 1.0)


@pytest.mark.parametrize("patients", [8, 26])
def test_the_smallest_detectable_difference_is_detected_four_times_in_five(patients):
    rng = np.random.default_rng(0)
    found, promised = [], statistics.smallest(1 / np.sqrt(patients * statistics.SIGNED_RANKS), patients - 1)
    for _ in range(1000):
        p, _ = statistics.signed_rank(rng.standard_normal(patients) + promised)
        found.append(p < 0.05)
    assert 0.7 < np.mean(found) < 0.86


def test_a_set_that_is_too_small_for_any_small_p_value_detects_nothing():
    p, smallest = statistics.signed_rank(np.full(5, 0.4) + np.arange(5) / 100)
    assert p > 0.05 and smallest == np.inf
    labels = np.array([0, 0, 0, 1, 1])
    found = statistics.mcnemar(labels, labels, np.array([1, 1, 1, 0, 1]))
    assert found.p > 0.05 and found.smallest == np.inf


def test_mcnemar_detects_no_less_than_six_patients():
    labels = np.zeros(100, int)
    worse = np.where(np.arange(100) < 2, 1, 0)
    assert statistics.mcnemar(labels, labels, worse).smallest >= 0.06
