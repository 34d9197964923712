"""Kill runs at random moments of their lives, start them again, and compare them with runs that nobody disturbed.

    python -m benchmarks.kills --kills=100 --terms=50

A pre-training and a fine-tuning are disturbed, each on one process, where parameters and losses have to be
bit-identical in the end, and on one to four processes, whose number changes between the starts, where sums have
another order. A SIGKILL goes to all processes of a run, as when a machine is lost; a SIGTERM too, as schedulers send
it. The moment is uniform over the time that a whole run takes, so it can be anywhere: imports, the check of the images,
the blur search of the fine-tuning, the compilation, a step, a save, an evaluation, the report. What a run had reached
by its log is counted.

`--only=fine-tuning` repeats the series whose names contain these words; the others are kept from the file. Every series
names its commit.
"""

import argparse
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.common import ROOT, write

sys.path.insert(0, str(ROOT / "tests"))
import tiny

from deblur_mae_jax.workdir import run_folder

STEPS, IMAGES, BATCH, SAVE_EVERY = 1200, 64, 8, 48
FIELDS = {
    "optim__steps": STEPS, "data__num_images": IMAGES, "optim__batch_size": BATCH,
    "checkpoint__every_epochs": SAVE_EVERY * BATCH / IMAGES, "report__every_epochs": 40.0,
}  # fmt: skip
# About 288 of the images are for training. The search takes one image at a time, so that it lasts.
TUNING = {
    "data__num_images": 480, "data__phantom_seed": 1, "optim__epochs": 24.0, "optim__warmup_epochs": 1.0,
    "checkpoint__every_epochs": SAVE_EVERY * BATCH / 288, "report__every_epochs": 6.0, "search__setting": "search(1)",
    "search__batch_size": 11,
}  # fmt: skip
LAYOUTS = ((1, 4), (4, 1), (2, 2), (3, 1), (1, 1))  # processes, and devices of each
IN_TIME = 30  # seconds from SIGTERM to the end


def command_of(before, workdir, batch):
    """The command of a run: a pre-training, or a fine-tuning of the network in `before`, with a search of its own."""
    if before is None:
        name, changes = "quickstart", FIELDS
    else:
        name, changes = "finetune", TUNING | {"init_from": before, "search__cache": workdir.parent / "search"}
    fields = tiny.changed(name, **changes | {"optim__batch_size": batch})
    flags = [f"--config=configs/{name}.py", *(f"--config.{field}={value}" for field, value in fields.items())]
    return [sys.executable, str(ROOT / "main.py"), *flags, f"--workdir={workdir}"]


def start(before, workdir, processes, devices, batch):
    """Start all processes of a run."""
    port = random.randint(20000, 50000)
    others = [
        [f"--coordinator=127.0.0.1:{port}", f"--num_processes={processes}", f"--process_id={i}"]
        for i in range(processes)
    ]
    command = command_of(before, workdir, batch)
    started = []
    for i in range(processes):
        with open(workdir.parent / f"log_{i}.txt", "w") as log:
            own = [*command, *(others[i] if processes > 1 else [])]
            environment = tiny.simulated(devices)
            started.append(subprocess.Popen(own, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=log))
    return started


def saved(workdir):
    """The steps whose checkpoints are complete."""
    found = [re.fullmatch(r"step_(\d+)", path.name) for path in (workdir / "checkpoints").glob("step_*")]
    return sorted(int(match[1]) for match in found if match)


def logged(workdir):
    """Losses by step."""
    out = {}
    path = workdir / "metrics.jsonl"
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if "loss" in values:
            out[values["step"]] = values["loss"]
    return out


def phase(workdir):
    """What a run was doing when it ended."""
    log = (workdir.parent / "log_0.txt").read_text()
    marks = {
        "finished at step": "report",
        "compiled in": "steps, saves and evaluations",
        "compiling the training step": "compilation",
    }
    found = next((name for mark, name in marks.items() if mark in log), "")
    searched = sum(len(set(path.read_text().split())) for path in (workdir.parent / "search").glob("*.csv"))
    if not found and 0 < searched < TUNING["data__num_images"]:
        return "blur search"
    return found or "start and check of the images"


def wait(started, seconds):
    """Wait for all processes; whether they ended in time."""
    end = time.monotonic() + seconds
    while any(p.poll() is None for p in started):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def whole(before, workdir, processes, devices, batch):
    """A run that nobody disturbs: the seconds that it takes."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    started = start(before, workdir, processes, devices, batch)
    assert wait(started, 600) and all(p.returncode == 0 for p in started), (workdir.parent / "log_0.txt").read_text()
    return time.monotonic() - began


def disturb(before, workdir, rng, signals, layouts, batch, life):
    """Start a run until it is finished; at a random moment of each start, send the last of `signals` and remove it."""
    workdir.parent.mkdir(parents=True, exist_ok=True)
    facts = Counter()
    waits, redone, codes = [], 0, Counter()
    while True:
        layout = layouts[facts["starts"] % len(layouts)]
        facts["starts"] += 1
        had, reached = saved(workdir), max(logged(workdir), default=0)
        started = start(before, workdir, *layout, batch)
        sent = None
        if signals:
            wait(started, rng.uniform(0.2, life))
            if any(p.poll() is None for p in started):
                sent = signals.pop()
                facts[f"in {phase(workdir)}"] += 1
                for process in started:
                    if process.poll() is None:
                        process.send_signal(sent)
        began = time.monotonic()
        if not wait(started, 60 if sent else 600):
            facts["not in time"] += 1
            for process in started:
                process.kill()
            wait(started, 60)
        if sent == signal.SIGTERM:
            waits.append(round(time.monotonic() - began, 2))
        codes.update(p.returncode for p in started)
        log = (workdir.parent / "log_0.txt").read_text()
        if "Traceback" in log and sent != signal.SIGKILL:
            facts["tracebacks"] += 1
            print(log, flush=True)
        resumed = re.search(r"resuming at step (\d+)", log)
        if had and resumed:
            facts["checkpoints lost"] += int(resumed[1]) < had[-1]
            redone = max(redone, reached - int(resumed[1]))
        if had and max(saved(workdir), default=0) < had[-1]:
            facts["checkpoints lost"] += 1
        if sent is None:
            ended = all(p.returncode == 0 for p in started)
            assert ended, log[-3000:]
            return dict(facts), waits, redone, {str(k): v for k, v in codes.items()}


def results(workdir):
    """What has to be the same whether a run was disturbed or not: parameters, search and predictions."""
    files = [workdir / name for name in ("blur_search.csv", "predictions.csv")]
    fingerprint = json.loads((workdir / "result.json").read_text())["params_fingerprint"]
    return [fingerprint, *(file.read_bytes() if file.exists() else b"" for file in files)]


def series(name, rng, kills, terms, layouts, batch, exact, before=None):
    """Disturb one run after the other until all signals are sent, and compare each with an undisturbed run.

    before: workdir of the pre-trained network that is fine-tuned. None: the runs are pre-trainings.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        life = whole(before, place / "whole" / "run", *layouts[-1], batch)
        undisturbed = place / "whole" / "run"
        want, losses = results(undisturbed), logged(undisturbed)
        signals = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
        rng.shuffle(signals)
        total, codes, waits, redone, runs, differ, apart = Counter(), Counter(), [], 0, 0, 0, 0.0
        while signals:
            workdir = place / f"run_{runs}" / "run"
            facts, waited, again, ended = disturb(before, workdir, rng, signals, layouts, batch, life)
            runs += 1
            total.update(facts)
            codes.update(ended)
            waits, redone = sorted([*waits, *waited]), max(redone, again)
            own = logged(workdir)
            same = results(workdir) == want and own == losses
            apart = max(apart, max(abs(own[s] / losses[s] - 1) for s in losses) if own.keys() == losses.keys() else 1e9)
            differ += (not same) if exact else apart > 1e-3
            print(name, runs, "runs", dict(total), waits[-1:], "s; redone", redone, "apart", apart, flush=True)
    return {
        "kills": kills, "terms": terms, "runs": runs, "seconds_of_a_run": life, **total,
        "checkpoints lost": total["checkpoints lost"], "tracebacks": total["tracebacks"],
        "not in time": total["not in time"], "runs that differ": differ, "largest_relative_difference_of_a_loss": apart,
        "most_steps_redone": redone, "save_every": SAVE_EVERY, "slowest_seconds_after_sigterm": max(waits, default=0),
        "seconds_after_sigterm": waits,
        "exit_codes": dict(codes), "git": run_folder.git_state(),
    }  # fmt: skip


def main():
    """Run both series and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--terms", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", default="")
    parser.add_argument("--only", default="")
    a = parser.parse_args()
    out = {}
    if a.only and a.output and Path(a.output).exists():
        kept = json.loads(Path(a.output).read_text())
        out = {name: {"git": kept["environment"]["git"], **value} for name, value in kept.items() if ", " in name}
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "pretraining" / "run"
        whole(None, before, 1, 1, BATCH)
        # 12 images divide evenly among 1 to 4 devices.
        for number, (name, layouts, batch, network) in enumerate((
            ("pretraining, one process", ((1, 1),), BATCH, None),
            ("pretraining, 1 to 4 processes", LAYOUTS, 12, None),
            ("fine-tuning, one process", ((1, 1),), BATCH, before),
            ("fine-tuning, 1 to 4 processes", LAYOUTS, 12, before),
        )):  # fmt: skip
            if a.only not in name:
                continue
            rng = random.Random(a.seed + number)
            kills, terms = (a.kills + number) // 4, (a.terms + number) // 4
            if kills + terms:
                out[name] = series(name, rng, kills, terms, layouts, batch, len(layouts) == 1, network)
    write(a.output, "kills", __doc__.splitlines()[0], {"seed": a.seed, **out})


if __name__ == "__main__":
    main()
