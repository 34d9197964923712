"""The measured images of a masked pre-training."""

import numpy as np
import pytest

from deblur_mae_jax.evaluators.image_reconstruction import spread_levels


@pytest.mark.parametrize("num", range(1, 18))
def test_every_level_is_measured_equally_often(num):
    levels = np.asarray(spread_levels(3 * num, num))
    np.testing.assert_array_equal(np.bincount(levels, minlength=num + 1), [0, *[3] * num])
    assert levels[0] == num
