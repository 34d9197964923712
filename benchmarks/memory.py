"""The peak memory of a training step, predicted by `--dry_run` and measured.

    python -m benchmarks.memory --config=configs/d2mae_thyroid.py --batch=1024

The prediction is the compiler's figure (`cost.compile_step`, which `--dry_run` prints). The measurement is the device's
counter; on a CPU it is the process's memory before the first step and its peak in two steps.
`plan` is the closed form of `--plan`, for accelerators in bfloat16.
"""

import argparse

import jax

from benchmarks.common import forget_peak, load_config, resident_bytes, simulated, write
from deblur_mae_jax.commands import plan
from deblur_mae_jax.training import compilation, experiment


def main():
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="configs/d2mae_thyroid.py")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--side", type=int, default=300)
    parser.add_argument("--set", action="append", default=[], help="field=value of the config")
    parser.add_argument("--output", default="")
    a = parser.parse_args()
    config = simulated(load_config(a.config, *a.set), a.images, a.side, a.batch)
    run = experiment.build(config)
    state, batch = run.make_state(), next(run.store.batches(0, 1))
    program = compilation.compile_step(run, state, batch)
    memory = program.step.memory_analysis()
    jax.block_until_ready(state)
    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    before = 0
    if on_cpu:
        before = resident_bytes("VmRSS")
        forget_peak()
    for _ in range(2):
        state, numbers = program.step(state, run.arrays, batch)
        jax.block_until_ready((state, numbers))
    if on_cpu:
        # The arguments are resident before the step; the step adds the rest of the program.
        added = resident_bytes("VmHWM") - before
        measured = added + memory.argument_size_in_bytes
    else:
        measured = (device.memory_stats() or {}).get("peak_bytes_in_use", 0)
    wanted = plan.need(run)
    out = {
        "config": a.config,
        "batch": a.batch,
        "dtype": str(run.network.model.dtype),
        "predicted_gb": program.bytes / 1e9,
        "measured_gb": measured / 1e9,
        "predicted_over_measured": program.bytes / measured if measured else None,
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "temporary_gb": memory.temp_size_in_bytes / 1e9,
        "plan_gb_bfloat16": wanted.memory() / 1e9,
        "saved_mb_per_image_bfloat16": wanted.saved_per_image / 1e6,
    }
    print({k: v for k, v in out.items() if k.endswith(("gb", "measured"))})
    write(a.output, "memory", "peak memory of a training step", out)


if __name__ == "__main__":
    main()
