"""One process works in a workdir at a time, and a place that cannot be written is refused before any work."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from deblur_mae_jax.commands import new_images
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.workdir import lock, run_folder
from deblur_mae_jax.workdir.run_folder import Workdir

HOLD = """
import sys, time
from deblur_mae_jax.workdir import lock
from deblur_mae_jax.workdir.run_folder import Workdir
with lock.hold(Workdir(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def owner(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True,
                               env=os.environ | {"PYTHONPATH": str(tiny.ROOT)})  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_refused_and_a_dead_owner_is_followed(tmp_path):
    process = owner(tmp_path / "run")
    try:
        with (
            pytest.raises(UserError, match=rf"in use by process {process.pid} on host .* since \d{{4}}-"),
            lock.hold(Workdir(tmp_path / "run")),
        ):
            pass
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert json.loads((tmp_path / "run" / "lock.json").read_text())["process"] == process.pid  # it could not clean up
    with lock.hold(Workdir(tmp_path / "run")):
        assert json.loads((tmp_path / "run" / "lock.json").read_text())["process"] == os.getpid()
    assert not (tmp_path / "run" / "lock.json").exists()
    with lock.hold(Workdir(tmp_path / "run")):
        pass


def test_a_home_folder_is_understood(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with lock.hold(Workdir("~/runs/first")):
        pass
    assert (tmp_path / "runs" / "first").is_dir()


@pytest.mark.parametrize("kind", ["below a file", "read-only", "full"])
def test_a_workdir_that_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch, kind):
    place = tmp_path / "run"
    if kind == "below a file":
        place.write_text("x")
        place = place / "run"
    elif kind == "full":
        monkeypatch.setattr(lock, "write_json", _refuse)
    else:  # not by its mode, which does not bind the superuser
        monkeypatch.setattr(lock.FileLock, "acquire", _refuse)
    with pytest.raises(UserError, match=r"--workdir: cannot (use|write to)"), lock.hold(Workdir(place)):
        pass


def _refuse(*arguments, **options):
    raise PermissionError(13, "Permission denied")


def test_a_config_that_cannot_be_written_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "write_json", _refuse)
    with pytest.raises(UserError, match=r"--workdir: cannot write to .*Permission denied"):
        run_folder.claim(Workdir(tmp_path), tiny.config())


def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(new_images.tempfile, "TemporaryFile", _refuse)
    with pytest.raises(UserError, match="--output: cannot write to"):
        new_images.make_folder(Path(tmp_path))


def test_the_leftover_of_a_save_that_was_killed_does_not_block_a_new_config(tmp_path):
    workdir = Workdir(tmp_path)
    run_folder.claim(workdir, tiny.config())
    (workdir.checkpoints / "step_4.orbax-checkpoint-tmp-1").mkdir(parents=True)
    assert not workdir.is_started()
    run_folder.claim(workdir, tiny.config(task__mask_ratio=0.5))
    (workdir.checkpoints / "step_4").mkdir()
    assert workdir.is_started()


def test_more_steps_are_refused_with_the_way_to_go_on(tmp_path):
    workdir = Workdir(tmp_path)
    run_folder.claim(workdir, tiny.config(optim__steps=4))
    (workdir.checkpoints / "step_4").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"cannot be made longer.*--config.init_from={tmp_path}"):
        run_folder.claim(workdir, tiny.config(optim__steps=8))
    with pytest.raises(UserError) as caught:
        run_folder.claim(workdir, tiny.config(optim__steps=8, task__mask_ratio=0.5))
    assert "made longer" not in str(caught.value)
