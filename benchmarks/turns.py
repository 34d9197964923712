"""Two libraries take turns, a step each, in processes of their own, so that the peak memory of each is known.

An untimed step precedes each timed one, as in a training: while one library has its turn, the system may take back the
memory that the other has freed, and the first step afterwards pays for it.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from benchmarks.swin_unetr_step import answer, peak_rss, started
from deblur_mae_jax.performance import tuning

# (one step to its end, the peak of the device in MiB or None, facts)
Made = tuple[Callable[[], None], Callable[[], float | None], dict[str, Any]]


def work(library: str, make: Callable[[], Made]) -> None:
    """For every line on standard input take two steps and print the seconds of the second; then the memory.

    library: "jax", or one of PyTorch's that is imported before the memory is measured for the first time.
    """
    if library == "jax":
        import jax

        jax.devices()
    else:
        import timm  # noqa: F401
    before = peak_rss()
    run, peak, facts = make()
    run()  # warm-up
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        run()
        started = time.perf_counter()
        run()
        print(json.dumps(time.perf_counter() - started), flush=True)
    print(json.dumps({"before_mib": before, "peak_mib": peak_rss(), "device_peak_mib": peak()}))


def measured(file: str, options: list[str], name: str, other: str, rounds: int) -> dict[str, Any]:
    """Times and memory of `name` with JAX and another library, and `speed_against_<other>`, a median over rounds.

    Both get the huge pages that `main.py` asks malloc for.

    file: the benchmark, which calls `work` with `--worker=LIBRARY:NAME`.
    """
    workers, times = {}, {"jax": [], other: []}  # type: dict[str, Any], dict[str, list[float]]
    row: dict[str, Any] = {}
    given = {**os.environ, **tuning.environment(os.environ)}
    given["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # the two share a GPU
    for library in times:
        command = [sys.executable, "-W", "ignore", file, *options, f"--worker={library}:{name}"]
        workers[library] = started(command, given)
        row[library] = answer(workers[library], library)
    for _ in range(rounds):
        for library, worker in workers.items():
            worker.stdin.write("step\n")
            worker.stdin.flush()
            times[library].append(answer(worker, library))
    for library, worker in workers.items():
        worker.stdin.write("end\n")
        worker.stdin.flush()
        row[library] |= answer(worker, library)
        worker.wait()
        row[library] |= {"median_ms": 1e3 * statistics.median(times[library]), "seconds": times[library]}
    pairs = zip(times["jax"], times[other], strict=True)
    row[f"speed_against_{other}"] = statistics.median(b / a for a, b in pairs)
    return row


def shown(name: str, row: dict[str, Any], other: str) -> str:
    """A row in one line."""
    return (
        f"{name:14s} {row[f'speed_against_{other}']:.2f}x {other}'s, {row['jax']['median_ms']:.0f} ms a step, peak "
        f"{row['jax']['peak_mib']:.0f} MiB against {row[other]['peak_mib']:.0f}"
    )
