"""Requests to stop, runs that hang, and the record of where the time went."""

import asyncio
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import types

import pytest
import tiny
from tiny_runs import command, go, lines, run

from deblur_mae_jax.training import loop, stop
from deblur_mae_jax.training.watchdog import Watchdog
from deblur_mae_jax.workdir import goodput


def test_outside_of_the_loop_a_request_takes_effect_at_once():
    with pytest.raises(stop.Stopped, match=r"stopped on request \(SIGTERM\)") as caught, stop.handling():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.number == signal.SIGTERM and not isinstance(caught.value, Exception)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_garbage_collection_is_not_lost(capsys, number):
    """Python ignores exceptions there; the signal came in JAX's callback of the collector."""

    class Doomed:
        def __del__(self):
            os.kill(os.getpid(), number)
            time.sleep(0.01)

    with pytest.raises(stop.Stopped) as caught, stop.handling():
        doomed = [Doomed()]
        doomed.clear()
        time.sleep(5)
    assert caught.value.number == number
    assert "Exception ignored" not in capsys.readouterr().err


def test_a_request_while_a_checkpoint_is_read_or_written_waits_for_its_end():
    """TensorStore reports to an event loop from its own threads; a loop that is closed too early raises there."""
    ended = []

    async def write():
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(20):
            await asyncio.sleep(0.01)
        ended.append(True)

    with pytest.raises(stop.Stopped), stop.handling():
        asyncio.run(write())
        time.sleep(5)
    assert ended


def test_a_request_within_an_import_waits_for_its_end(tmp_path, monkeypatch):
    """C code that a module calls may replace the exception, as scikit-learn's did while it was imported."""
    (tmp_path / "interrupted.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.1)\nended = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(stop.Stopped), stop.handling():
        interrupted = importlib.import_module("interrupted")
        time.sleep(5)
    assert interrupted.ended


def test_a_request_that_became_another_error_is_still_a_request():
    with pytest.raises(stop.Stopped, match="stopped on request") as caught, stop.handling():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except stop.Stopped as request:
            raise ValueError("not a valid PEP 3118 buffer format string") from request
    assert caught.value.number == signal.SIGTERM


def test_an_error_without_a_request_stays_that_error():
    with pytest.raises(ValueError, match="a bad image"), stop.handling():
        try:
            raise OSError("cannot read")
        except OSError as error:
            raise ValueError("a bad image") from error


BUSY = """
import hashlib, os, signal, sys, threading, time
from deblur_mae_jax.training import patience
signal.signal(signal.SIGTERM, signal.SIG_IGN)  # in place of JAX's handler
found = patience.Patience(lambda: "save" not in sys.argv, 0.3)
found.start()
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
if "stop" in sys.argv:
    found.stop()
began = time.monotonic()
while time.monotonic() < began + 2:  # one call that does not return to Python, as a compilation
    hashlib.pbkdf2_hmac("sha256", b"", b"", 40_000_000 if len(sys.argv) == 1 else 100_000)
print("went on")
"""


@pytest.mark.parametrize(("argument", "code"), [("", 143), ("save", 0), ("stop", 0)])
def test_a_process_that_is_busy_ends_in_time_if_there_is_nothing_to_save(argument, code):
    program = [sys.executable, "-c", BUSY, *([argument] if argument else [])]
    done = subprocess.run(program, cwd=tiny.ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert ("stopped on request (SIGTERM)" in done.stderr) == (code != 0)
    assert ("went on" in done.stdout) == (code == 0)  # it ended in the middle of the call


def test_inside_of_the_loop_it_waits():
    with stop.handling() as requests:
        with stop.handling() as inner, requests.deferred():
            assert inner is requests and not requests.now()
            os.kill(os.getpid(), signal.SIGTERM)
            assert requests.now()
            with pytest.raises(stop.Stopped):
                stop.poll()
        assert signal.getsignal(signal.SIGTERM) == requests._note
    assert signal.getsignal(signal.SIGTERM) != requests._note
    stop.poll()  # nothing, outside of `handling`


def test_max_hours_stops_in_time(monkeypatch, capsys):
    monkeypatch.setattr(stop, "SAVING", 1.0)
    began = time.monotonic()
    with pytest.raises(stop.Stopped), stop.handling() as requests:
        requests.reserve = 2.0  # 1.5 times of this is left
        stop.stop_before(requests, 4 / 3600, began)
        time.sleep(20)
    assert time.monotonic() - began < 4
    assert "the 0.00111111 hours of --max_hours are nearly over" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 3])
def test_a_stop_in_an_evaluation_is_made_up_for(tmp_path, monkeypatch, call):
    """The score of an evaluation chooses the best weights, so an evaluation that is left out would change them."""
    settings = {"report__every_epochs": 1.0, "optim__epochs": 3.0}
    whole = go(tmp_path / "whole", **settings)
    calls, real = [], stop.poll

    def poll():
        calls.append(1)
        # The first calls are those of the evaluation of the untrained network.
        if len(calls) == call * per_evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
        real()

    from deblur_mae_jax.evaluators import classification

    monkeypatch.setattr(classification.stop, "poll", lambda: calls.append(1))
    go(tmp_path / "counted", **settings)
    per_evaluation = len(calls) // 5  # four evaluations, and the predictions of two splits
    calls.clear()
    monkeypatch.setattr(classification.stop, "poll", poll)
    if call == 1:  # before the first save: nothing is there to save
        with pytest.raises(stop.Stopped):
            go(tmp_path / "stopped", **settings)
    else:
        first = go(tmp_path / "stopped", **settings)
        assert not first.finished and first.stopped_by == signal.SIGTERM
    monkeypatch.setattr(classification.stop, "poll", real)
    again = go(tmp_path / "stopped", **settings)
    assert again.finished and again.stopped_by == 0 and again.params_fingerprint == whole.params_fingerprint
    evaluated = lines(tmp_path / "whole", "val_log_loss")
    assert len(evaluated) == 4 and lines(tmp_path / "stopped", "val_log_loss") == evaluated
    for name in ("predictions.csv", "metrics.json"):
        assert (tmp_path / "stopped" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_patience_waits_for_an_evaluation_that_was_stopped():
    """It may find the best weights, and then the run is not over."""
    config = types.SimpleNamespace(
        select=types.SimpleNamespace(patience_epochs=1.0), report=types.SimpleNamespace(every_epochs=0.8)
    )
    run = types.SimpleNamespace(total_steps=100, every=lambda epochs: round(10 * epochs), config=config)
    a_loop = types.SimpleNamespace(run=run, best={"step": 8}, unevaluated=False)
    # Evaluated at 16 and 24; at 18 the patience is over, but a step between evaluations says nothing.
    assert [step for step in range(9, 30) if loop.Loop.is_over(a_loop, step)] == list(range(24, 30))
    a_loop.unevaluated = True
    assert not loop.Loop.is_over(a_loop, 24) and loop.Loop.is_over(a_loop, 100)


@pytest.mark.slow
def test_a_run_that_is_stopped_while_it_checks_images_ends_with_the_code_of_the_signal(tmp_path):
    arguments, environment = command(tmp_path, data__num_images=100_000)
    process = subprocess.Popen(arguments, env=environment, cwd=tiny.ROOT, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if "checking images" in line:
            break
    process.send_signal(signal.SIGTERM)
    rest = process.communicate(timeout=60)[1]
    assert process.returncode == 143, rest
    assert "stopped on request (SIGTERM); run the same command again to go on" in rest and "Traceback" not in rest


HANG = """
import sys, time
from deblur_mae_jax.training.watchdog import Watchdog
dog = Watchdog(0.01)
for step in (1, 2, 3):
    dog.step(step)
    time.sleep(0.1)
with dog.longer("to save"):
    time.sleep(1)  # longer than a step may take
time.sleep(1)      # nothing is watched
def exchange_with_the_others(): time.sleep(60)
dog.step(4)
exchange_with_the_others()
"""


@pytest.mark.slow
def test_a_hung_run_ends_with_its_stacks():
    done = subprocess.run([sys.executable, "-c", HANG], cwd=tiny.ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 124, done.stderr
    assert "the run hangs: step 4 has not ended" in done.stderr and "config.hang_minutes=0.01" in done.stderr
    assert "exchange_with_the_others" in done.stderr


@pytest.mark.slow
def test_a_run_that_was_suspended_does_not_hang():
    """As by Ctrl-Z, or by a scheduler that gives its machine to another run for a while."""
    program = HANG.partition("with dog")[0] + "for step in range(4, 70):\n    dog.step(step)\n    time.sleep(0.1)\n"
    program = program.replace("Watchdog(0.01)", "Watchdog(0.05)") + "print('done', flush=True)\n"
    process = subprocess.Popen([sys.executable, "-c", program], cwd=tiny.ROOT, stdout=subprocess.PIPE, text=True)
    time.sleep(4)
    process.send_signal(signal.SIGSTOP)
    time.sleep(11)
    process.send_signal(signal.SIGCONT)
    assert process.communicate(timeout=60)[0] == "done\n" and process.returncode == 0


def test_the_limit_of_a_step_follows_the_typical_one():
    dog = Watchdog(0)
    assert dog.limit == 0
    dog = Watchdog(10)
    try:
        assert dog.limit == 600
        dog._typical.extend([100.0, 1.0, 120.0])
        assert dog.limit == 20 * 100
    finally:
        dog.close()


def start_of(began, ended, first, last, **seconds):
    return {"began": began, "ended": ended, "from": first, "step": last, "seconds": seconds}


def test_where_the_time_went():
    starts = [
        start_of(0, 100, 0, 40, steps=80.0, setup=20.0),  # killed at step 40; the last checkpoint is of step 30
        start_of(160, 300, 30, 100, steps=100.0, save=40.0),
    ]
    seconds = goodput.shares(starts)
    assert seconds["lost"] == 20 and seconds["steps"] == 160 and seconds["down"] == 60
    assert seconds["wall"] == 300 == sum(v for k, v in seconds.items() if k != "wall")
    assert goodput.line(starts) == (
        "5 min 00 s since the first start: steps 53%, saving 13%, starting 7%, steps taken twice 7%, "
        "not running 20%; 2 starts"
    )
    between = start_of(110, 150, None, None, setup=40.0)  # died before its first step
    assert goodput.shares([starts[0], between, starts[1]])["lost"] == 20
    back = [starts[0], start_of(50, 90, 40, 60, steps=40.0)]  # the clock was set back
    assert goodput.shares(back)["down"] == 0


@pytest.mark.parametrize("text", ["", "{", '{"a": 1}', '[{"began": 1}]', "[3]"])
def test_a_damaged_record_of_the_time_is_begun_again(tmp_path, text):
    (tmp_path / "time.json").write_text(text)
    assert goodput.read(tmp_path / "time.json") == []


@pytest.mark.slow
def test_a_run_records_its_time_over_its_starts(tmp_path):
    run(tmp_path, optim__steps=3)
    [first] = json.loads((tmp_path / "time.json").read_text())
    assert first["from"] == 0 and first["step"] == 3
    assert all(first["seconds"][part] > 0 for part in ("steps", "compile", "evaluate", "save", "setup"))
    assert abs(sum(first["seconds"].values()) - (first["ended"] - first["began"])) < 1
    run(tmp_path, optim__steps=3)
    starts = json.loads((tmp_path / "time.json").read_text())
    assert [start["from"] for start in starts] == [0, 3]
    assert "since the first start" in (tmp_path / "report" / "index.html").read_text()
