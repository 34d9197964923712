"""The learning-rate schedule against MAE's published code."""

import jax.numpy as jnp
import numpy as np
import pytest

from deblur_mae_jax.training import optimizer, schedule


@pytest.mark.parametrize("k", [0, 1, 2])
def test_schedule(golden, k):
    z = golden("lr_schedule_mae")
    lr, min_lr, warmup, epochs = z[f"args_{k}"]
    got = [schedule.mae_learning_rate(e, lr, min_lr, warmup, epochs) for e in z[f"epochs_{k}"]]
    np.testing.assert_allclose(got, z[f"lr_{k}"], rtol=1e-5, atol=1e-9)


def test_clipping_bounds_the_gradient_but_not_the_direction():
    params = {"w": jnp.ones((2, 2))}
    big = {"w": jnp.full((2, 2), 100.0)}
    for clip in (0.0, 1.0):
        tx = optimizer.adamw(lambda _: 0.1, clip_norm=clip, weight_decay=0.0)
        updates, state = tx.update(big, tx.init(params), params)
        np.testing.assert_allclose(updates["w"], -0.1, rtol=1e-4)  # Adam's first step is its sign
        adam = state[1] if clip else state[0]
        np.testing.assert_allclose(adam.mu["w"], 0.1 * (0.5 if clip else 100.0), rtol=1e-4)
