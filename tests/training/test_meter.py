"""The speed that a run reports."""

import pytest

from deblur_mae_jax.training import meter


@pytest.fixture
def clock(monkeypatch):
    """A clock that moves when it is told to: `clock(seconds)`."""
    now = [100.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def test_whole_steps_count_and_waiting_is_a_share(clock):
    speed = meter.Throughput(32)
    assert speed.seconds(10) == float("inf")
    for _ in range(4):
        with speed.waiting():
            clock(0.5)
        clock(1.5)
        speed.tick()
    assert speed.rate == pytest.approx(16) and speed.stall == pytest.approx(0.25)
    assert speed.seconds(10) == pytest.approx(20)


def test_a_step_that_a_pause_interrupts_does_not_count(clock):
    speed = meter.Throughput(32)
    clock(2.0)
    speed.tick()
    speed.pause()  # an evaluation
    clock(60.0)
    speed.tick()
    assert speed.rate == pytest.approx(16)  # still that of the whole step
    clock(1.0)
    speed.tick()
    assert speed.rate == pytest.approx(32)
