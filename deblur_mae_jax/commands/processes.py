"""Let the processes of a run find each other: Slurm, Open MPI, Kubernetes, TPU pods, or by hand.

JAX knows the address of process 0 in each of these. This module decides whether there is more than one process,
and which GPUs a process owns, because under Slurm and Open MPI JAX gives each process one GPU, so one task for each
node would use one GPU of eight.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import importlib.util
import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from deblur_mae_jax.errors import TRY_AGAIN, UserError, one_line

# Cold starts of large jobs take longer than JAX's own 5 minutes.
TIMEOUT = 1800  # seconds
# Where a process that ends says why, and how often the others look there, seconds.
ENDED, POLL = "deblur_mae_jax/ended", 1.0
# Words of JAX's errors that mean that another process is gone.
LOST = ("Connection closed by peer", "Connection reset by peer", "coordination service")
_leaving = threading.Lock()
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
TPU_VM = "TPU VM"
TOGETHER = "--coordinator=host:port, --num_processes=N and --process_id=I belong together"
NONE_FOUND = (
    "--distributed=on: no other process was found. Start every process with srun (Slurm), mpirun (Open MPI) or an "
    "indexed job (Kubernetes), on every worker of a TPU, or name them: --coordinator=host:port --num_processes=N "
    "--process_id=I"
)


@dataclasses.dataclass(frozen=True)
class Found:
    """How the processes find each other.

    how: for the user.
    method: JAX's name of the environment; None: JAX finds it, or the address is given by hand.
    processes: number of processes; 0 if only the environment's own service knows.
    devices: numbers of the GPUs of this process among those it sees; None: JAX decides, as where there are none.
    """

    how: str
    method: str | None
    processes: int
    devices: list[int] | None = None


def find(environ: Mapping[str, str]) -> Found | None:
    """The processes that the environment describes; `None` for a single one. Raises `UserError`."""
    if int(environ.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:  # first, because mpirun may run inside of a Slurm job
        return _open_mpi(environ)
    if all(name in environ for name in SLURM):
        tasks = int(environ["SLURM_NTASKS"])
        here = _tasks_of_this_node(environ)
        found = Found("Slurm", "slurm", tasks, gpus(environ, int(environ["SLURM_LOCALID"]), here))
        return found if tasks > 1 else None
    if int(environ.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_NODELIST" not in environ:
        print(
            f"this Slurm job has {environ['SLURM_NTASKS']} tasks, but this process was not started by srun: it runs "
            "alone",
            file=sys.stderr,
        )
        return None
    hosts = environ.get("TPU_WORKER_HOSTNAMES", "") or environ.get("TPU_PROCESS_ADDRESSES", "")
    if hosts:
        count = len(hosts.split(",")) * int(environ.get("MEGASCALE_NUM_SLICES", 1))
        return Found("TPU workers", None, count) if count > 1 else None
    if "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ:
        if importlib.util.find_spec("kubernetes") is None:
            raise UserError(
                "this is a process of an indexed Kubernetes job, and the package by which the processes find each "
                "other is missing: pip install 'jax[k8s]', or --distributed=off to run alone"
            )
        return Found("Kubernetes", "k8s", 0)
    if _is_tpu_vm(environ):
        return Found(TPU_VM, None, 0)
    return None


def _open_mpi(environ: Mapping[str, str]) -> Found:
    """The processes of mpirun. Raises `UserError` for Open MPI 5, which tells no process where the first one is."""
    size, rank = (int(environ.get(f"OMPI_COMM_WORLD_{k}", d)) for k, d in (("SIZE", 1), ("RANK", 0)))
    if "OMPI_MCA_orte_hnp_uri" not in environ:
        raise UserError(
            f"mpirun has started {size} processes, and this version of Open MPI does not say where the first one is: "
            f"add --coordinator=HOST_OF_PROCESS_0:12345 --num_processes={size} --process_id=$OMPI_COMM_WORLD_RANK "
            f"(here {rank}), or --distributed=off to run each of them alone"
        )
    here, number = (int(environ.get(f"OMPI_COMM_WORLD_LOCAL_{k}", d)) for k, d in (("SIZE", 1), ("RANK", 0)))
    return Found("Open MPI", "ompi", size, gpus(environ, number, here))


def _is_tpu_vm(environ: Mapping[str, str]) -> bool:
    wanted = environ.get("JAX_PLATFORMS", "") in ("", "tpu") and "TPU_SKIP_MDS_QUERY" not in environ
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    return bool(wanted and chips and importlib.util.find_spec("libtpu"))


def _tasks_of_this_node(environ: Mapping[str, str]) -> int:
    """Tasks of the step on this node; Slurm writes `2(x3),1` for three nodes with two and one with one."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE", "") or environ.get("SLURM_TASKS_PER_NODE", "")
    counts: list[int] = []
    for part in filter(None, text.split(",")):
        found = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip())
        if found is None:
            return 1
        counts += [int(found[1])] * int(found[2] or 1)
    node = int(environ.get("SLURM_NODEID", 0))
    return counts[node] if node < len(counts) else 1


def gpus(environ: Mapping[str, str], number: int, tasks: int) -> list[int] | None:
    """The GPUs of a process, as numbers among those it sees; `None` if it sees none. Raises `UserError`.

    Under Slurm and Open MPI, JAX takes the one GPU with the number of the process on its node unless they are named.

    number: of the process on its node.
    tasks: processes on the node.
    """
    listed = environ.get("CUDA_VISIBLE_DEVICES", "") or environ.get("SLURM_STEP_GPUS", "")
    count = len([part for part in listed.split(",") if part.strip()]) or len(glob.glob("/dev/nvidia[0-9]*"))
    # All are its own if there are fewer than tasks, or as many as it asked for: then Slurm shows each process its own.
    if tasks == 1 or count < tasks or str(count) == environ.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2]:
        return list(range(count)) or None
    if count % tasks:
        raise UserError(
            f"{tasks} processes on this node cannot share {count} GPUs evenly (CUDA_VISIBLE_DEVICES={listed})"
        )
    share = count // tasks
    return list(range(number * share, (number + 1) * share))


def initialize(mode: str, coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Connect the processes of the run. Prints one line that says what was found. Raises `UserError`.

    mode: "auto": connect if the environment describes several processes; "on": refuse to run alone; "off".
    coordinator: address `host:port` of process 0, with the number of processes and of this one.
    """
    asked, coordinator = coordinator, coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS")
    if mode == "off":
        return
    if coordinator and num_processes is not None and process_id is not None:
        if not 0 <= process_id < num_processes:
            raise UserError(f"--process_id={process_id} must be between 0 and {num_processes - 1}")
        # Inside of a Slurm job JAX would take its settings for what is not given here.
        found: Found | None = Found("--coordinator", "deactivate", num_processes)
    elif num_processes is not None or process_id is not None:
        raise UserError(TOGETHER)
    else:
        found = find(os.environ)
    if found is None and asked:
        raise UserError(TOGETHER)
    if found is None and mode == "on":
        raise UserError(NONE_FOUND)
    if found is None:
        return
    try:
        jax.distributed.initialize(
            coordinator, num_processes, process_id, local_device_ids=found.devices,
            cluster_detection_method=found.method, initialization_timeout=TIMEOUT,
        )  # fmt: skip
    except (RuntimeError, ValueError, OSError) as error:
        if mode == "auto" and found.how == TPU_VM and isinstance(error, ValueError):
            print("no other worker of this TPU was found: it runs alone", file=sys.stderr)  # such as in Colab
            return
        where = f" at {coordinator}" if coordinator else ""
        raise UserError(
            f"the processes of this run ({found.how}) could not connect{where}: {one_line(error)}"
        ) from error
    if jax.process_count() > 1:
        threading.Thread(target=_watch, daemon=True).start()
    _check(found)


def _several() -> bool:
    """Whether the run has several processes. Unlike JAX's count, this does not start the devices."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def _service() -> Any:
    """The client of JAX's coordination service, which all processes can write to."""
    from deblur_mae_jax.workdir import checkpoint

    return checkpoint.service()


def _said() -> tuple[int, int, str] | None:
    """The process that has ended first, its exit code and its message; `None` if none has."""
    try:
        number, code, message = json.loads(_service().key_value_try_get(ENDED))
    except jax.errors.JaxRuntimeError as error:
        if "NOT_FOUND" in str(error):
            return None
        raise
    return number, code, message


def _watch() -> None:
    """End this process as soon as another one has said by `end` why it ended."""
    with contextlib.suppress(Exception):  # the service is gone: the run is over
        while (said := _said()) is None:
            time.sleep(POLL)
        _follow(said)


def _follow(said: tuple[int, int, str] | None) -> None:
    """End this process as another one has ended, if one has."""
    if said is not None and said[0] != jax.process_index():
        _leaving.acquire()  # for good: one thread says it and leaves
        print(f"error: process {said[0]} of this run has ended: {said[2]}", file=sys.stderr)
        _leave(said[1])


def _leave(code: int) -> NoReturn:
    """Exit, where JAX would wait for the other processes for minutes.

    First all of them get the time to read why. Process 0 runs the service from which they read, so it is the last.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    time.sleep((5 if jax.process_index() == 0 else 2) * POLL)
    os._exit(code)


def end(code: int, message: str) -> NoReturn:
    """Exit with `code`. The other processes, which would wait for this one, exit with it within seconds.

    If another process has ended before, this one follows it.
    """
    if not _several():
        sys.exit(code)
    with contextlib.suppress(Exception):  # another process has been first
        _service().key_value_set(ENDED, json.dumps([jax.process_index(), code, message]))
    with contextlib.suppress(Exception):
        _follow(_said())
    _leave(code)


def leave_compilation(code: int) -> NoReturn:
    """Exit with `code` after a stop. A single process does so at once, even in the middle of a compilation.

    Python would wait for the compiler's threads and then crash in them, with another exit code.
    """
    if _several():
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_of_crash(error: BaseException) -> None:
    """If the run has several processes, print the traceback and end all of them, with status 1.

    If another process has ended, so that an exchange with it failed here, follow it without a traceback. If it said
    nothing, as a killed process, the status is that of a run which can be started again.
    """
    if _several():
        time.sleep(POLL)
        with contextlib.suppress(Exception):
            _follow(_said())
        traceback.print_exception(error)
        lost = any(word in str(error) for word in LOST)
        end(TRY_AGAIN if lost else 1, one_line(error))


def count() -> int:
    """Number of processes of the run."""
    return int(jax.process_count())


def _check(found: Found) -> None:
    """Compare the number of processes and devices with what is expected, and print them. Raises `UserError`."""
    count, local, everywhere = jax.process_count(), jax.local_device_count(), jax.device_count()
    if found.processes and found.processes != count:
        raise UserError(f"{found.how} has {found.processes} processes, and {count} are connected")
    if local * count != everywhere:
        from jax.experimental import multihost_utils

        counts = np.asarray(multihost_utils.process_allgather(np.array([local]))).reshape(-1).tolist()
        raise UserError(f"processes have different numbers of devices: {', '.join(map(str, counts))}")
    if jax.process_index() == 0:
        kind = jax.devices()[0].device_kind
        print(
            f"processes   {count} ({found.how}), {local} of {everywhere} devices each ({kind})",
            file=sys.stderr, flush=True,
        )  # fmt: skip
