"""Compile the training step and report the cost of a run before it starts: FLOPs, memory, hours."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
from clu import parameter_overview

from deblur_mae_jax.performance import tuning
from deblur_mae_jax.training.experiment import Experiment
from deblur_mae_jax.training.progress import Progress


@dataclasses.dataclass
class Program:
    """The compiled training step and the compiler's cost analysis of it.

    flops: None if the compiler does not count them. A GPU's leaves out the products that libraries compute.
    """

    step: Any
    seconds: float
    flops: float | None
    bytes: int


NO_STEP = Program(None, 0.0, None, 0)  # of a run that has no step left


def compile_step(run: Experiment, state: Any, batch: Any) -> Program:
    """Compile the training step for exactly these shapes, so that nothing is compiled later in the loop."""
    started = time.monotonic()
    compiled = run.train_step.lower(state, run.arrays, batch).compile()
    tuning.give_back_memory()
    cost = compiled.cost_analysis() or {}
    memory = compiled.memory_analysis()
    total = 0
    if memory is not None:
        total = (
            memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )
    flops = float(cost.get("flops", 0.0)) if jax.default_backend() != "gpu" else None
    return Program(compiled, time.monotonic() - started, flops, total)


def summary(run: Experiment, program: Program, state: Any) -> dict[str, Any]:
    """The cost of a step, by formula and by the compiler's count."""
    batch = run.config.optim.batch_size
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    return {
        "parameters": parameters,
        "gflop_per_image_formula": run.network.flops_per_image / 1e9,
        # XLA counts the operations of one device.
        "gflop_per_image_compiler": None if program.flops is None else program.flops * run.mesh.size / batch / 1e9,
        "gflop_per_step_formula": run.network.flops_per_image * batch / 1e9,
        "memory_gib_per_device": program.bytes / 2**30,
        "compile_seconds": program.seconds,
        "store": run.store.name,
        "steps": run.total_steps,
        "steps_per_epoch": run.steps_per_epoch,
    }


def dry_run(run: Experiment, progress: Progress) -> Any:
    """Compile, print shapes and cost, take two steps, estimate the duration of the whole run; return the parameters."""
    state = run.make_state()
    first = next(run.store.batches(0, 1))
    shapes = {k: v.shape for k, v in first.items()}
    overview = parameter_overview.get_parameter_overview(state.params)
    program = compile_step(run, state, first)
    cost = summary(run, program, state)
    state, numbers = program.step(state, run.arrays, first)
    loss = float(numbers["loss"])
    # Time a second step, because the first one also loads the program and the data.
    started = time.monotonic()
    state, numbers = program.step(state, run.arrays, first)
    jax.block_until_ready(numbers)
    seconds = time.monotonic() - started
    batch = run.config.optim.batch_size
    counted = cost["gflop_per_image_compiler"]
    by_compiler = "" if counted is None else f", {counted:.2f} by the compiler's count"
    lines = [
        overview,
        f"batch                 {batch}, arrays per step {shapes}",
        f"parameters            {cost['parameters']:,}",
        f"GFLOP per image       {cost['gflop_per_image_formula']:.2f} by formula{by_compiler}",
        f"GFLOP per step        {cost['gflop_per_step_formula']:.1f}",
        f"memory per device     {cost['memory_gib_per_device']:.2f} GiB",
        f"compile time          {cost['compile_seconds']:.1f} s",
        f"first loss            {loss:.4f}",
        f"step time             {seconds:.3f} s, {batch / seconds:.1f} img/s on "
        f"{run.mesh.size} x {jax.devices()[0].device_kind}",
        f"whole run             {run.total_steps} steps, about {run.total_steps * seconds / 3600:.2f} h here",
    ]
    for line in lines:
        progress.print(line)
    return state.params
