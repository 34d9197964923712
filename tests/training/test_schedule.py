"""The learning-rate schedule against MAE's published code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.training import experiment, optimizer, schedule


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


@given(st.floats(0, 20), st.integers(2, 60), st.sampled_from(schedule.SCHEDULES), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_no_schedule_exceeds_its_rate(warmup, epochs, name, per_epoch):
    """Also with a warm-up of a fraction of an epoch, and with MONAI's schedule, which counts whole epochs."""
    config = tiny.load("mae_thyroid")
    config.optim.update(schedule=name, base_lr=1.0, scale_lr=False, min_lr=0.0, warmup_lr=0.0)
    length = schedule.Lengths(epochs * per_epoch, float(epochs), min(warmup, 0.9 * epochs), float(per_epoch))
    rate = schedule.make(config.optim, length)
    rates = [float(rate(step)) for step in range(0, epochs * per_epoch, max(1, per_epoch // 2))]
    assert min(rates) >= 0 and max(rates) <= 1 + 1e-6


@pytest.mark.parametrize(
    ("fields", "warmup", "said"),
    [
        ({"steps": 20_000, "warmup_steps": 5_000}, 2_000, "2000 steps, a tenth of the run, instead of"),
        ({"steps": 20_000, "warmup_steps": 500}, 500, ""),
        ({"steps": 20_000, "warmup_steps": 487}, 487, ""),
        ({"steps": 0, "epochs": 100.0, "warmup_steps": 500}, 500, ""),
        ({"steps": 0, "epochs": 100.0, "warmup_steps": 0, "warmup_epochs": 40.0}, 4_000, ""),
        ({"steps": 20_000, "warmup_steps": 0, "warmup_epochs": 40.0}, 2_000, ""),
    ],
)
def test_the_warm_up_is_as_long_as_the_config_says_or_says_so(fields, warmup, said):
    optim = tiny.load("mae_thyroid").optim
    optim.update(fields)
    length = schedule.lengths(optim, 100.0)
    assert length.warmup_epochs * 100 == pytest.approx(warmup)
    lines = schedule.notes(optim, length)
    assert (said in lines[0]) if said else not lines
    optim.update(steps=0, epochs=4.0, warmup_steps=500)
    with pytest.raises(UserError, match=r"warmup_steps=500 must be .* less than config\.optim\.epochs=4, 400 steps"):
        schedule.lengths(optim, 100.0)


def rates(name, steps, per_epoch, warmup=0.0):
    optim = tiny.load("mae_thyroid").optim
    optim.update(schedule=name, base_lr=1.0, scale_lr=False, min_lr=0.0, warmup_lr=0.0)
    made = schedule.make(optim, schedule.Lengths(steps, steps / per_epoch, warmup, float(per_epoch)))
    return np.array([float(made(step)) for step in range(steps)])


def test_simmims_rate_falls_to_a_tenth_at_seven_eighths():
    found = rates("multistep", 80, 10, warmup=1.0)
    np.testing.assert_allclose(found[[0, 5, 10, 60, 69]], [0, 0.5, 1, 1, 1], rtol=1e-6)
    np.testing.assert_allclose(found[[70, 79]], 0.1, rtol=1e-6)


def test_a_constant_rate_stays_after_its_warm_up():
    found = rates("constant", 40, 10, warmup=2.0)
    np.testing.assert_allclose(found[:20], np.arange(20) / 20, atol=1e-6)
    np.testing.assert_allclose(found[20:], 1, rtol=1e-6)


@pytest.mark.parametrize("per_epoch", [41, 47, 110])
def test_the_compiled_rate_changes_with_the_first_step_of_an_epoch(per_epoch):
    """A compiler that multiplies by 1 / per_epoch ends below whole numbers."""
    optim = tiny.load("mae_thyroid").optim
    optim.update(schedule="by_epoch", base_lr=1.0, scale_lr=False, min_lr=0.0)
    rate = schedule.make(optim, schedule.Lengths(200 * per_epoch, 200.0, 50.0, float(per_epoch)))
    found = jax.jit(rate)(jnp.arange(200) * per_epoch)
    epochs = [schedule.monai_learning_rate(k, 1.0, 0.0, 50, 200.0) for k in range(200)]
    np.testing.assert_allclose(found, epochs, rtol=1e-5, atol=1e-7)


def test_an_interval_without_end_is_a_number_of_steps():
    assert experiment.Experiment.every(None, float("inf")) > 10**9


def test_monais_rate_changes_once_per_epoch():
    found = rates("by_epoch", 60, 10, warmup=2.2).reshape(6, 10)  # a warm-up of two epochs
    assert (found == found[:, :1]).all()
    np.testing.assert_allclose(found[:3, 0], [0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(found[4, 0], 0.5, atol=1e-6)  # the middle of the cosine
