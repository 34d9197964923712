"""What saving costs: the time for which a checkpoint of a ViT-B holds up training, written at once or while it goes on.

    python -m benchmarks.saving --config=configs/d2mae_thyroid.py --batch=16 --rounds=3

Each round takes the same number of steps in three ways, in random order: without a save, with one that is waited for
(`checkpoint.async_save=off`), and with one that is written while training goes on (`on`). The cost of a save is the
difference; the share is that of a run that saves at the default interval, on this machine.
"""

import argparse
import random
import statistics
import tempfile
import time
from pathlib import Path

import jax

from benchmarks.common import load_config, simulated, write
from deblur_mae_jax.training import compilation, experiment
from deblur_mae_jax.workdir.checkpoint import Checkpoints


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/d2mae_thyroid.py")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6, help="of a round; a save takes place after the first")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=10675, help="of a data set, for the default interval")
    parser.add_argument("--output", default="")
    a = parser.parse_args()
    config = load_config(a.config)
    interval = config.checkpoint.every_epochs * a.images / config.optim.batch_size
    full = config.optim.batch_size
    simulated(config, 32, 300, a.batch)
    run = experiment.build(config)
    state, batch = run.make_state(), next(run.store.batches(0, 1))
    step = compilation.compile_step(run, state, batch).step
    state, out = step(state, run.arrays, batch)
    jax.block_until_ready((state, out))
    seconds, blocked = {"none": [], "off": [], "on": []}, {"off": [], "on": []}
    number = 0
    for _ in range(a.rounds):
        for kind in random.sample(sorted(seconds), 3):
            with tempfile.TemporaryDirectory() as folder:
                manager = Checkpoints(Path(folder) / "c", write=kind if kind == "on" else "off")
                began = time.monotonic()
                for i in range(a.steps):
                    state, out = step(state, run.arrays, batch)
                    jax.block_until_ready((state, out))
                    if i == 0 and kind != "none":
                        number += 1
                        start = time.monotonic()
                        assert manager.save(number, state, {})
                        blocked[kind].append(time.monotonic() - start)
                seconds[kind].append(time.monotonic() - began)
                manager.close()
        print({k: [round(x, 2) for x in v] for k, v in seconds.items()}, blocked, flush=True)
    plain = statistics.median(seconds["none"])
    one = plain / a.steps * full / a.batch  # a step at the batch size of the config
    result = {
        kind: {
            "seconds_blocked": statistics.median(blocked[kind]),
            "extra_seconds": statistics.median(x - y for x, y in zip(seconds[kind], seconds["none"], strict=True)),
        }
        for kind in blocked
    }
    for values in result.values():
        values["share_at_default_interval"] = values["extra_seconds"] / (interval * one)
    content = {
        "config": a.config, "state_gb": sum(x.nbytes for x in jax.tree.leaves(state)) / 1e9, "batch": a.batch,
        "steps_between_saves": interval, "seconds_of_a_full_step": one, "rounds": seconds, "saving": result,
    }  # fmt: skip
    write(a.output, "saving", __doc__.splitlines()[0], content)


if __name__ == "__main__":
    main()
