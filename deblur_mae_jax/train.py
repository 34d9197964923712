"""Train the network that a config describes: `train_and_evaluate(config, workdir)`. Start reading here.

An image passes through the packages in this order. `data` reads and checks the files. `input_pipeline` crops, degrades
and normalises the images inside the jitted step. A network from `models` processes them, and a task from `tasks`
computes the loss. `training` updates the parameters, `evaluators` measure them, and `reports` present the result.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import jax
from clu import parameter_overview
from ml_collections import ConfigDict

from deblur_mae_jax import lookup, sharding
from deblur_mae_jax.config import flat, without_effect
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data import summary
from deblur_mae_jax.performance import compile_cache, profiling
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.training import checks, compilation, experiment, stop, train_step
from deblur_mae_jax.training.experiment import Experiment
from deblur_mae_jax.training.loop import Loop
from deblur_mae_jax.training.progress import Progress
from deblur_mae_jax.training.result import NonFiniteLossError, Result
from deblur_mae_jax.workdir import checkpoint, goodput, lock, metric_writer, run_folder
from deblur_mae_jax.workdir.run_folder import Workdir

__all__ = ["NonFiniteLossError", "Result", "train_and_evaluate"]


def train_and_evaluate(config: ConfigDict, workdir: str | Path, dry_run: bool = False, profile: bool = False) -> Result:
    """Train the network that `config` describes. Calling it again with the same `workdir` resumes the run.

    workdir: folder of the run.
    dry_run: compile, take two steps, print their cost, and leave no run behind.
    profile: trace a few steps into `profile/` and print how their time was spent.
    Raises `UserError` for bad input and `NonFiniteLossError` if the loss is not finite.
    """
    folder = Workdir(workdir)
    with contextlib.nullcontext() if dry_run else lock.hold(folder), stop.handling() as requests:
        return _train(config, folder, dry_run, profile, requests)


def _train(config: ConfigDict, folder: Workdir, dry_run: bool, profile: bool, requests: stop.Stop) -> Result:
    progress = Progress()
    clock = goodput.Clock(folder.time if jax.process_index() == 0 and not dry_run else None)
    compile_cache.use(config.compilation_cache)

    # Identify the run. Unset fields are inherited from the network it starts from.
    config, source, notes = inherit.resolve(config, None if dry_run else folder)
    identity = checks.check(config)
    sharding.require_same(config=flat(config), commit=run_folder.git_state() if jax.process_count() > 1 else None)
    if not dry_run:
        run_folder.claim(folder, config)
        if source is not None and identity.starts_from_pretrained:
            inherit.keep_copy(folder, source)

    # Build its images, network, optimiser and training step.
    run = experiment.build(config, None if dry_run else folder, source, progress.counters())
    run.notes[:0] = [*notes, *without_effect(config)]
    requests.poll()
    _introduce(run, progress)
    if dry_run:
        return Result(0, False, Path(os.devnull), None, "", compilation.dry_run(run, progress))
    _list_skipped(run, folder)

    # Restore its last checkpoint, if there is one. A first state beside it would take its memory twice.
    checkpoints = checkpoint.open_run(folder, config.checkpoint)
    restored = checkpoints.restore_latest(run.state_shapes, train_step.is_intact)
    state = run.make_state() if restored is None else restored.state
    start, notes_saved = (0, {}) if restored is None else (restored.step, restored.notes)
    if restored is not None:
        progress.print(f"resuming at step {start} of {run.total_steps}")
    requests.poll()

    # Compile for exactly these shapes. A run that is over is only judged again.
    batches = run.store.batches(start, max(run.total_steps - start, 1))
    first = next(batches)
    program = compilation.NO_STEP
    if start < run.total_steps:
        progress.update("compiling the training step", force=True)
        with clock.part("compile"):
            program = compilation.compile_step(run, state, first)
            checkpoint.meet("the training step is compiled")
        requests.poll()
        progress.update(f"compiled in {program.seconds:.1f} s", force=True)
    main = jax.process_index() == 0
    if main:
        _record(run, folder, state, compilation.summary(run, program, state) if program.step is not None else None)

    # Train, evaluate and save; at the end evaluate the best weights.
    evaluator = lookup.module("evaluators", identity.evaluator, "Evaluator", "evaluator of the task").Evaluator(
        run, folder
    )
    writer = metric_writer.Writer(folder if main else None, start, config.log.tensorboard)
    tracer = profiling.Tracer(folder.profile, start, progress) if profile and main else None
    loop = Loop(
        run, folder, evaluator, program, checkpoints, writer, progress, stop=requests, clock=clock, tracer=tracer,
        best=notes_saved.get("best"), unevaluated=bool(notes_saved.get("unevaluated")),
    )  # fmt: skip
    with contextlib.closing(loop):
        return loop.train(state, start, first, batches)


def _introduce(run: Experiment, progress: Progress) -> None:
    """Print what the run starts from and what it trains on."""
    if jax.process_index() != 0:
        return
    for line in run.notes:
        progress.print(line)
    labels = run.supervision
    classes = labels.classes if labels is not None and labels.mask_values is not None else ()
    table = summary.rows(run.index, indices=None if labels is None else labels.indices, mask_classes=classes)
    devices = f"{run.mesh.size} x {jax.devices()[0].device_kind}"
    for line in summary.lines([*table, ("store", run.store.name), ("devices", devices)]):
        progress.print(line)


def _list_skipped(run: Experiment, workdir: Workdir) -> None:
    """Write `skipped.csv`, and add every file that becomes unreadable during training."""
    if jax.process_index() != 0:
        return
    with run_folder.writing(workdir):
        data_index.write_skipped(workdir.skipped, run.skipped)

    def on_failure(item: data_index.Skipped) -> None:
        run.skipped.append(item)
        data_index.add_skipped(workdir.skipped, item)

    run.loader.on_failure = on_failure
    with run_folder.writing(workdir):
        for item in run.loader.failed:
            on_failure(item)


def _record(run: Experiment, workdir: Workdir, state: Any, cost: dict[str, Any] | None) -> None:
    """Record the environment, the cost, the parameters and the data set of the run."""
    with run_folder.writing(workdir):
        run_folder.record_environment(workdir)
        if cost is not None:
            run_folder.write_json(workdir.cost, cost)
        overview = parameter_overview.get_parameter_overview(state.params)
        workdir.parameters.write_text(overview + "\n")
        run_folder.write_json(workdir.dataset, run.data_record())
