"""Processes that find each other: what an environment describes, and real local processes."""

import contextlib
import json
import signal
import subprocess
import time

import numpy as np
import pytest
import tiny
from PIL import Image
from tiny_runs import command, lines, plain_run

from deblur_mae_jax.commands import processes
from deblur_mae_jax.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NTASKS": "2", "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}  # fmt: skip
MPI = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://127.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "8"}


def found(**environ):
    return processes.find(environ)


def test_slurm():
    assert found(**SLURM) == processes.Found("Slurm", "slurm", 2)
    assert found(**SLURM | {"SLURM_NTASKS": "1"}) is None
    eight = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}
    two_here = SLURM | eight | {"SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1"}
    assert found(**two_here).devices == [4, 5, 6, 7]
    one_each = SLURM | eight | {"SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_LOCALID": "3"}
    assert found(**one_each).devices == [3]
    # One task on each node has all GPUs of its node; a task that sees its own GPU only keeps it.
    assert found(**SLURM | eight | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)"}).devices == [*range(8)]
    own = {"CUDA_VISIBLE_DEVICES": "0", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1"}
    assert found(**SLURM | own).devices == [0]
    four_each = {"CUDA_VISIBLE_DEVICES": "0,1,2,3", "SLURM_STEP_TASKS_PER_NODE": "2", "SLURM_LOCALID": "1"}
    assert found(**SLURM | four_each | {"SLURM_GPUS_PER_TASK": "h100:4"}).devices == [0, 1, 2, 3]
    assert found(**SLURM | four_each).devices == [2, 3]
    assert found(**two_here | {"SLURM_GPUS_PER_TASK": "4"}).devices == [4, 5, 6, 7]  # not bound
    last = {"SLURM_STEP_TASKS_PER_NODE": "4(x2),2", "SLURM_NODEID": "2", "SLURM_STEP_GPUS": "0,1,2,3"}
    assert found(**SLURM | last).devices == [0, 1]


@pytest.mark.parametrize(
    "given,told",
    [((None, None, None), ([*range(8)], "slurm")), (("127.0.0.1:9", 2, 1), (None, "deactivate"))],
    ids=["by Slurm", "by hand in a job of Slurm"],
)
def test_jax_is_told_to_use_all_gpus_of_a_node_with_one_task(monkeypatch, given, told):
    """Left to itself it takes the one GPU with the number of the task on its node."""
    eight = {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    for name, value in (SLURM | eight).items():
        monkeypatch.setenv(name, value)
    heard = {}
    monkeypatch.setattr(processes.jax.distributed, "initialize", lambda *_, **options: heard.update(options))
    with contextlib.suppress(UserError):  # no processes are connected
        processes.initialize("on", *given)
    assert (heard["local_device_ids"], heard["cluster_detection_method"]) == told


def test_gpus_that_cannot_be_shared_are_refused():
    with pytest.raises(UserError, match="3 processes on this node cannot share 8 GPUs"):
        found(**SLURM, CUDA_VISIBLE_DEVICES="0,1,2,3,4,5,6,7", SLURM_STEP_TASKS_PER_NODE="3")


def test_a_slurm_script_without_srun_runs_alone_and_says_so(capsys):
    environ = {name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS")}
    assert found(**environ) is None
    assert "2 tasks, but this process was not started by srun" in capsys.readouterr().err


def test_open_mpi_tpu_workers_and_kubernetes(monkeypatch):
    assert found(**MPI) == processes.Found("Open MPI", "ompi", 8)
    split = {"OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_RANK": "2", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}
    assert found(**MPI | split).devices == [2]
    assert found(**MPI | {"OMPI_COMM_WORLD_SIZE": "1"}) is None
    assert found(TPU_WORKER_HOSTNAMES="t0,t1,t2,t3") == processes.Found("TPU workers", None, 4)
    assert found(TPU_WORKER_HOSTNAMES="localhost") is None
    assert found(TPU_WORKER_HOSTNAMES="t0,t1", MEGASCALE_NUM_SLICES="2").processes == 4
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"jax\[k8s\]"):
        found(**pod)
    monkeypatch.setattr(processes.importlib.util, "find_spec", lambda name: object())
    assert found(**pod).how == "Kubernetes"
    assert found(KUBERNETES_SERVICE_HOST="10.0.0.1") is None  # a single pod


def test_mpirun_inside_of_slurm_is_mpirun():
    assert found(**SLURM, **MPI).how == "Open MPI"
    assert found(SLURM_JOB_ID="7", SLURM_NTASKS="8", **MPI).how == "Open MPI"


def test_open_mpi_that_tells_no_address_is_refused():
    with pytest.raises(UserError, match=r"--coordinator=HOST_OF_PROCESS_0:12345 --num_processes=4 .*\(here 3\)"):
        found(OMPI_COMM_WORLD_SIZE="4", OMPI_COMM_WORLD_RANK="3")


def test_choices_that_contradict_each_other_are_refused(monkeypatch):
    for name in SLURM:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="--distributed=on: no other process was found"):
        processes.initialize("on", None, None, None)
    with pytest.raises(UserError, match="belong together"):
        processes.initialize("auto", None, 4, None)
    with pytest.raises(UserError, match="--process_id=4 must be between 0 and 3"):
        processes.initialize("auto", "127.0.0.1:9", 4, 4)
    processes.initialize("off", None, None, None)
    processes.initialize("auto", None, None, None)


def test_a_coordinator_alone_is_refused(monkeypatch):
    monkeypatch.setattr(processes, "find", lambda environment: None)
    with pytest.raises(UserError, match="belong together"):
        processes.initialize("auto", "10.0.0.1:1234", None, None)


def test_a_tpu_without_other_workers_runs_alone(monkeypatch, capsys):
    def fail(*_, **__):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(processes, "find", lambda environ: processes.Found(processes.TPU_VM, None, 0))
    monkeypatch.setattr(processes.jax.distributed, "initialize", fail)
    processes.initialize("auto", None, None, None)
    assert "it runs alone" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"could not connect: coordinator_address should be defined"):
        processes.initialize("on", None, None, None)


def start_all(count, workdir, environ, flags=lambda i: [], devices=1, **fields):
    """Start the same command `count` times; returns (exit code, stderr) of each."""
    arguments, base = command(workdir, devices=devices, **fields)
    started = [
        subprocess.Popen(
            [*arguments, *flags(i)], env=base | environ(i), cwd=tiny.ROOT, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )
        for i in range(count)
    ]  # fmt: skip
    return [(p.communicate(timeout=240)[1], p.returncode) for p in started]


def slurm(job):
    return lambda i: SLURM | {"SLURM_JOB_ID": str(job), "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}


@pytest.mark.slow
def test_two_processes_of_slurm_find_each_other_and_give_the_losses_of_one(tmp_path):
    folder, _ = plain_run()
    ended = start_all(2, tmp_path, slurm(1234), optim__steps=6, optim__accum_steps=2)
    assert [code for _, code in ended] == [0, 0], ended
    assert "processes   2 (Slurm), 1 of 2 devices each" in ended[0][0]
    np.testing.assert_allclose(list(lines(tmp_path).values()), list(lines(folder).values()), rtol=1e-5)
    assert json.loads((tmp_path / "environment.json").read_text())["processes"] == 2


@pytest.mark.slow
def test_processes_that_differ_are_refused(tmp_path):
    flags = lambda i: [f"--config.optim.weight_decay={0.05 + i}"]
    for output, code in start_all(2, tmp_path, slurm(2345), flags, optim__steps=6):
        assert code == 2 and "differ in their config: process 0 and process 1" in output, output


@pytest.mark.slow
@pytest.mark.parametrize("absent", [0, 1])
def test_an_error_of_one_process_ends_all_of_them_with_its_code(tmp_path, absent):
    """The others wait for it inside an exchange, where JAX would leave them for minutes and end them with 134."""
    for i in range(2):
        (tmp_path / str(i)).mkdir()
    for i in range(16):
        place = tmp_path / str(1 - absent) / "images"
        place.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (40, 40), np.uint8)).save(place / f"{i}.png")
    own_home = lambda i: slurm(4567 + absent)(i) | {"HOME": str(tmp_path / str(i))}
    ended = start_all(2, tmp_path / "run", own_home, data__name="image_folder", data__root="~/images")
    assert [code for _, code in ended] == [2, 2], ended
    assert "images' does not exist" in ended[absent][0]
    assert f"process {absent} of this run has ended: config.data.root" in ended[1 - absent][0]


@pytest.mark.slow
def test_what_runs_on_one_process_says_so(tmp_path):
    for output, code in start_all(2, tmp_path, slurm(5678), lambda i: ["--inspect"]):
        assert code == 2 and "--inspect runs on one process" in output, output
    assert not tmp_path.joinpath("inspection").exists()


LONG = {"optim__steps": 5000, "checkpoint__every_epochs": 20.0, "data__num_images": 16, "log__every_steps": 1}


def two_processes(workdir, job, flags=(), **fields):
    arguments, base = command(workdir, **LONG, **fields)
    return [
        subprocess.Popen(
            [*arguments, *flags], env=base | slurm(job)(i), cwd=tiny.ROOT, stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip


def wait_for_step(workdir, step, started):
    for _ in range(1200):
        with contextlib.suppress(OSError, ValueError):
            if max(lines(workdir), default=0) >= step:
                return
        assert all(p.poll() is None for p in started), [p.communicate()[1][-2000:] for p in started]
        time.sleep(0.1)
    raise AssertionError("no progress")


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_preempted_process_makes_all_of_them_save_and_stop(tmp_path, number):
    started = two_processes(tmp_path, 3456 + number)
    wait_for_step(tmp_path, 30, started)
    started[number].send_signal(signal.SIGTERM)
    began = time.monotonic()
    outputs = [p.communicate(timeout=60)[1] for p in started]
    assert [p.returncode for p in started] == [143, 143], outputs
    assert time.monotonic() - began < 30 and "stopped on request at step" in outputs[0]
    step = json.loads((tmp_path / "result.json").read_text())["step"]
    assert 30 <= step < 5000 and (tmp_path / "checkpoints" / f"step_{step}").is_dir()


@pytest.mark.slow
def test_a_frozen_process_does_not_hold_the_others_for_ever(tmp_path):
    started = two_processes(tmp_path, 4567, ["--config.hang_minutes=0.1"])
    try:
        wait_for_step(tmp_path, 30, started)
        started[1].send_signal(signal.SIGSTOP)
        output = started[0].communicate(timeout=90)[1]
        assert started[0].returncode == 124 and "the run hangs: step" in output, output[-3000:]
    finally:
        started[1].kill()
        started[1].communicate()
