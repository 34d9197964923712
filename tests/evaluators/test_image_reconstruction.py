"""The measured images of a masked pre-training, and its page."""

import numpy as np
import pytest

from deblur_mae_jax.evaluators import pretraining
from deblur_mae_jax.evaluators.image_reconstruction import spread_levels
from deblur_mae_jax.reports import reconstruction


@pytest.mark.parametrize("num", range(1, 18))
def test_every_level_is_measured_equally_often(num):
    levels = np.asarray(spread_levels(3 * num, num))
    np.testing.assert_array_equal(np.bincount(levels, minlength=num + 1), [0, *[3] * num])
    assert levels[0] == num


@pytest.mark.parametrize(("value", "drawn"), [(120.0, False), (25.0, True)])
def test_an_input_that_equals_the_original_has_no_psnr(value, drawn, tmp_path):
    latest = {"eval_loss": 0.5, "psnr_degraded": value, "psnr_restored": 20.0, "ssim_degraded": 1.0}
    lines = [{"step": step, **latest} for step in (0, 9)]
    right = reconstruction.figure(lines).axes[2]
    assert ("psnr degraded" in [line.get_label() for line in right.lines]) == drawn
    page = reconstruction.write(
        tmp_path, title="run", facts={}, latest=latest, by_level=[], lines=lines, sheets=[], config={}, skipped=0
    )
    text = page.read_text()
    assert ("of the degraded input" in text) == drawn and "of its unmasked reconstruction" in text


@pytest.mark.parametrize(
    "latest,said",
    [
        ({"eval_loss": 0.5, "eval_loss_of_mean": 0.2}, "no better than a plain gray patch"),
        ({"eval_loss": 0.1, "eval_loss_of_mean": 0.2, "psnr_degraded": 30.0, "psnr_restored": 15.0}, "does not undo"),
        ({"eval_loss": 0.1, "eval_loss_of_mean": 0.2, "psnr_degraded": 20.0, "psnr_restored": 25.0}, None),
        ({"eval_loss": 0.1, "eval_loss_of_mean": 0.2, "psnr_degraded": 120.0, "psnr_restored": 25.0}, None),  # MAE
        ({"eval_loss": 3.0}, None),
        # The loss of a volume has other parts: rotation and contrast.
        ({"eval_loss": 1.4, "eval_reconstruction": 0.1, "eval_loss_of_mean": 0.2}, None),
        ({"eval_loss": 1.4, "eval_reconstruction": 0.3, "eval_loss_of_mean": 0.2}, "no better than a plain gray patch"),
    ],
)
def test_a_network_that_reconstructs_badly_is_told_so(latest, said):
    found = pretraining.doubts(latest)
    assert said in found if said else found == ""
