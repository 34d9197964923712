"""Time a training step of every pre-training objective against PyTorch with timm's networks, and the memory of each.

    python -m benchmarks.objectives --batch=4

Networks and settings are those of `configs/`: ViT-B, ResNet-50, Swin-B, BEiT-B and ConvMAE-B for one gray channel, in
float32. A step is the forward pass, the loss, the backward pass, the optimiser and the momentum copy, on crops that
are already in memory. Every variant runs in a separate process; the two libraries take turns, one step each after an
untimed one, and ratios are medians over rounds. Both have huge pages, as `main.py` asks for them. On a CPU the peak is
the resident memory of the process. Needs the `pytorch` extra.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import turns

# Without a --objectives, in this order.
OBJECTIVES = ("moco_v3", "simclr", "simmim", "simmim:beit", "simmim_swin", "convmae", "dino_v2", "diffmae")


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objectives", default=",".join(OBJECTIVES))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", default="")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def ours(a, name):
    """(step, peak of the device, facts)."""
    import importlib

    import jax
    import jax.numpy as jnp

    from benchmarks import common
    from deblur_mae_jax import sharding
    from deblur_mae_jax.input_pipeline.keys import stream_keys
    from deblur_mae_jax.training import experiment, optimizer, schedule, train_step

    file, _, word = name.partition(":")
    get = importlib.import_module(f"configs.{file}").get_config
    config = common.simulated(get(word) if word else get(), max(16, a.batch), 256, a.batch)
    config.model.dtype = "float32"
    run = experiment.build(config)
    batch = next(run.store.batches(0, 1))
    keys = stream_keys(config.seed, 0, jnp.arange(a.batch))
    flat = jax.tree.map(lambda x: x.reshape(-1), batch)
    ready = jax.jit(lambda arrays: run.network.inputs.train(run.store.gather(arrays["images"], flat), keys))(run.arrays)
    length = schedule.lengths(config.optim, 1)
    rate = schedule.make(config.optim, length)
    network = run.network
    tx = optimizer.make(config.optim, rate, network.model, network.rules, network.task.trains)
    division = sharding.Division(run.mesh)
    step = train_step.make_train_step(
        lambda arrays, part, keys: part, network.task, tx, rate, 0, division, total_steps=length.steps
    )
    state, stacked = run.make_state(), jax.tree.map(lambda x: x[None], ready)
    program = jax.jit(step, donate_argnums=0).lower(state, {}, stacked).compile()
    kept = [state]

    def go():
        kept[0], out = program(kept[0], {}, stacked)
        jax.block_until_ready((kept[0], out))

    def peak():
        found = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return found / 2**20 if found else None

    facts = {"parameters": sum(x.size for x in jax.tree.leaves(state.params)), "image_size": config.image_size}
    return go, peak, facts


def theirs(a, name):
    """The same in PyTorch, on images of the same shapes."""
    import importlib

    import numpy as np

    from benchmarks import torch_objectives

    file, _, word = name.partition(":")
    get = importlib.import_module(f"configs.{file}").get_config
    config = get(word) if word else get()
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape, np.float32)
    side, channels = config.image_size, config.model.in_chans
    arrays = {k: draw(a.batch, side, side, channels) for k in ("inputs", "other_inputs")}
    if name == "dino_v2":
        small = config.augment.local_size
        arrays["local_inputs"] = draw(config.augment.local_crops, a.batch, small, small, channels)
    return torch_objectives.step(name, side, a.batch, arrays)


def main():
    """Measure, print, write JSON."""
    a = parse()
    if a.worker:
        library, _, name = a.worker.partition(":")
        turns.work(library, lambda: (ours if library == "jax" else theirs)(a, name))
        return
    from benchmarks import common

    rows = {}
    for name in a.objectives.split(","):
        rows[name] = turns.measured(__file__, [f"--batch={a.batch}"], name, "torch", a.rounds)
        print(turns.shown(name, rows[name], "torch"), flush=True)
    content = {"batch": a.batch, "rounds": a.rounds, "objectives": rows}
    common.write(a.output, "objectives", __doc__.splitlines()[0], content)


if __name__ == "__main__":
    main()
