"""Two processes with one device each against one process with two devices: the images per second of the same run.

    python -m benchmarks.processes --rounds=3

Each round trains the demo's network in both ways, in random order, and takes the median rate of its steps, after the
first third. The processes talk to each other as those on two machines do, here over the loopback interface.
"""

import argparse
import json
import random
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import ROOT, write

sys.path.insert(0, str(ROOT / "tests"))
import tiny

WAYS = {"one process, two devices": (1, 2), "two processes, one device each": (2, 1)}


def rate(workdir, processes, devices, steps):
    """Images per second of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = [
        sys.executable, str(ROOT / "main.py"), f"--config={ROOT}/configs/quickstart.py", f"--workdir={workdir}",
        f"--config.optim.steps={steps}", "--config.report.eval_split=", "--config.log.every_steps=5",
        "--config.report.every_epochs=1000.0",
    ]  # fmt: skip
    found = [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}"] if processes > 1 else []
    started = [
        subprocess.Popen([*common, *found, *([f"--process_id={i}"] if found else [])], cwd=ROOT,
                         env=tiny.simulated(devices), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for i in range(processes)
    ]  # fmt: skip
    texts = [process.communicate()[1] for process in started]
    assert all(process.returncode == 0 for process in started), texts[0][-3000:]
    lines = map(json.loads, (Path(workdir) / "metrics.jsonl").read_text().splitlines())
    return statistics.median(x["images_per_second"] for x in lines if x["step"] > steps / 3 and "loss" in x)


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--output", default="")
    a = parser.parse_args()
    rates = {name: [] for name in WAYS}
    for number in range(a.rounds):
        for name in random.sample(list(WAYS), 2):
            with tempfile.TemporaryDirectory() as folder:
                rates[name].append(rate(f"{folder}/run", *WAYS[name], a.steps))
            print(number, name, f"{rates[name][-1]:.1f} img/s", flush=True)
    one, two = rates.values()
    ratios = [y / x for x, y in zip(one, two, strict=True)]
    content = {"steps": a.steps, "images_per_second": rates, "rate_of_two_processes": statistics.median(ratios)}
    write(a.output, "processes", __doc__.splitlines()[0], content | {"ratios": ratios})


if __name__ == "__main__":
    main()
