"""The one training loop: `train_and_evaluate(config, workdir)`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from ml_collections import ConfigDict

from deblur_mae_jax import (
    checkpoint,
    chips,
    cost,
    experiment,
    lookup,
    metrics,
    profiling,
    steps,
    transfer,
    workdir,
)
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.experiment import Experiment
from deblur_mae_jax.network import task_module
from deblur_mae_jax.progress import Progress, duration
from deblur_mae_jax.stop import Stop


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient was not finite; the message names the capture."""


@dataclasses.dataclass
class Result:
    """How a run ended."""

    step: int
    finished: bool
    report: Path
    checkpoint: Path | None
    params_fingerprint: str
    params: Any
    measures: dict[str, float] = dataclasses.field(default_factory=dict)


def train_and_evaluate(
    config: ConfigDict, workdir_path: str | Path, dry_run: bool = False, profile: bool = False
) -> Result:
    """Train as `config` says, in `workdir_path`; the same call again resumes.

    With `dry_run`, compile, take two steps, print what they cost, and leave no run behind. With
    `profile`, trace a few steps into `profile/` and say where their time went. Raises
    `UserError` for bad input and `NonFiniteLossError` when the loss is not finite.
    """
    folder = Path(workdir_path)
    say = Progress()
    main_process = jax.process_index() == 0
    cost.use_compilation_cache(config.compilation_cache)
    config, source, notes = transfer.resolve(config, None if dry_run else folder)
    experiment.check(config)
    if not dry_run:
        workdir.claim(folder, config)
        if source is not None and transfer.inherits(config):
            transfer.keep_copy(folder, source)
    run = experiment.build(
        config,
        None if dry_run else folder,
        lambda done, total: say.show(f"checking images: {done} of {total}"),
        source,
        lambda done, total: say.show(f"blur search: {done} of {total} images"),
    )
    notes += run.notes
    if run.supervision is not None:
        run.supervision.lines[:] = notes
    if main_process:
        for line in notes:
            say.say(line)
    skipped = list(run.index.skipped)
    if main_process:
        left_out = f", {len(skipped)} files left out" if skipped else ""
        sides = " x ".join(str(side) for side in reversed(run.index.canvas))
        say.say(f"{len(run.index)} images up to {sides}{left_out}; {run.store.name} store")

    state = run.make_state()
    if dry_run:
        cost.dry_run(run, state, say)
        return Result(0, False, Path(os.devnull), None, "", state.params)

    # Another failure to read a file later on is added to the same list.
    if main_process:
        data_index.write_skipped(folder / "skipped.csv", skipped)

        def on_failure(item: data_index.Skipped) -> None:
            skipped.append(item)
            data_index.write_skipped(folder / "skipped.csv", skipped)

        run.loader.on_failure = on_failure
        for item in run.loader.failed:
            on_failure(item)
    checkpoints = checkpoint.Checkpoints(
        folder / "checkpoints", config.checkpoint.keep_last, config.checkpoint.keep_every
    )
    fingerprint = jax.jit(steps.fingerprint)
    restored = checkpoints.restore_latest(state)
    if restored is not None:
        state = restored.state
        say.say(f"resuming at step {restored.step} of {run.total_steps}")
    # Not read from the state, which may still be on its way while the step is compiled.
    start = restored.step if restored is not None else 0

    remaining = max(run.total_steps - start, 1)
    batches = run.store.batches(start, remaining)
    first = next(batches)
    say.show("compiling the training step", force=True)
    program = cost.compile_step(run, state, first)
    say.show(f"compiled in {program.seconds:.1f} s", force=True)
    estimate = cost.summary(run, program, state)
    if main_process:
        _record(run, folder, state, estimate, skipped)
    loop = _Loop(run, folder, checkpoints, program, say, fingerprint, skipped)
    if profile and main_process:
        loop.tracer = profiling.Tracer(folder / "profile", start, say)
    loop.best = restored.notes.get("best") if restored is not None else None
    try:
        return loop.run(state, start, first, batches)
    finally:
        if loop.tracer is not None:
            loop.tracer.close()
        loop.writer.close()
        checkpoints.close()


def _record(run: Experiment, folder: Path, state: Any, estimate: dict, skipped: list) -> None:
    workdir.write_json(folder / "environment.json", workdir.environment())
    workdir.write_json(folder / "cost.json", estimate)
    (folder / "parameters.txt").write_text(
        parameter_overview.get_parameter_overview(state.params) + "\n"
    )
    labels = run.index.source.labels or []
    workdir.write_json(
        folder / "dataset.json",
        {
            "fingerprint": run.index.fingerprint,
            "num_images": len(run.index),
            "canvas": run.index.canvas,
            "skipped": len(skipped),
            "classes": {name: labels.count(name) for name in sorted(set(labels))},
            "class_names": run.supervision.classes if run.supervision else [],
            "mask_values": run.supervision.mask_values if run.supervision else None,
            "groups": len(set(run.index.source.groups or [])),
        },
    )


@jax.jit
def _copied(params: Any) -> Any:
    return jax.tree.map(jax.numpy.copy, params)


class _Loop:
    """The loop and what it writes. Metrics of a step are read while the next one runs."""

    def __init__(self, run, folder, checkpoints, program, say, fingerprint, skipped):
        self.run_, self.folder, self.checkpoints = run, folder, checkpoints
        self.program, self.say, self.fingerprint, self.skipped = program, say, fingerprint, skipped
        self.main = jax.process_index() == 0
        resume = checkpoints.latest_step() or 0
        self.writer = metrics.Writer(
            folder if self.main else None, resume, run.config.log.tensorboard
        )
        evaluator = task_module(run.config).EVALUATOR
        live = lookup.function("evaluators", evaluator, "Live", "EVALUATOR of the task")
        self.live = live(run, folder, self.writer)
        self.best: dict[str, Any] | None = None  # step and score of the weights to keep
        self.peak = chips.peak_flops(jax.devices()[0].device_kind)
        self.window = [time.monotonic(), 0, 0.0]  # start, steps, seconds waited for data
        self.rate, self.fresh = 0.0, True
        self.tracer: profiling.Tracer | None = None

    def run(self, state: Any, start: int, first: Any, batches: Any) -> Result:
        run, config = self.run_, self.run_.config
        save_every = run.every(config.checkpoint.every_epochs)
        report_every = run.every(config.report.every_epochs)
        pending: tuple[int, Any] | None = None
        step = start
        batch = first
        # The untrained network is judged after the first step, so that what is wrong with the step
        # is known at once; the step itself takes the place of its input.
        untrained = _copied(state.params) if start == 0 else None
        with Stop() as stop:
            self.window = [time.monotonic(), 0, 0.0]
            while step < run.total_steps and not self.patience_is_over(step):
                with self.watched(step + 1, pending):
                    state, numbers = self.program.step(state, run.arrays, batch)
                step += 1
                if self.tracer is not None:
                    self.tracer.after(step, numbers, self.program.step)
                if untrained is not None:
                    jax.block_until_ready(numbers)
                    elapsed = time.monotonic() - self.window[0]
                    self.rate = config.optim.batch_size / elapsed
                    self.say.show("the first step is taken", force=True)
                    self.report(0, untrained)
                    untrained = None
                if pending is not None:
                    self.note(*pending, state)
                pending = (step, numbers)
                if step % save_every == 0 and step < run.total_steps:
                    self.note(*pending, state)
                    pending = None
                if step % report_every == 0 and step < run.total_steps:
                    self.report(step, state.params)
                if step % save_every == 0 and step < run.total_steps:
                    self.save(step, state)
                if stop.now(step):
                    break
                if step < run.total_steps:
                    waiting = time.monotonic()
                    batch = next(batches)
                    self.window[2] += time.monotonic() - waiting
            if pending is not None:
                self.note(*pending, state)
            finished = step >= run.total_steps or self.patience_is_over(step)
            self.say.done()
            if finished:
                self.report(step, state.params)
            saved = self.save(step, state)
        return self.finish(step, state, finished, saved)

    @contextlib.contextmanager
    def watched(self, step: int, pending: Any) -> Iterator[None]:
        """Nothing may travel between host and device unasked in a step; traced if the user wants."""
        traced = self.tracer.around(step, pending) if self.tracer else contextlib.nullcontext()
        with jax.transfer_guard("disallow"), traced:
            yield

    def patience_is_over(self, step: int) -> bool:
        """Whether the validation images have not been judged better for too long."""
        if self.best is None or not self.run_.config.select.patience_epochs:
            return False
        return step - self.best["step"] >= self.run_.every(self.run_.config.select.patience_epochs)

    def keep_best(self, step: int, params: Any) -> None:
        """Keep the weights if the validation images are judged better than ever before."""
        score = self.live.score
        if score is None or (self.best is not None and score <= self.best["score"]):
            return
        place = self.folder / f"{checkpoint.BEST}_{step}"
        try:
            checkpoint.save_tree(place, params)
            self.best = {"step": step, "score": score}
        except Exception as error:  # full disks and dead mounts come in many kinds
            line = (str(error).splitlines() or [type(error).__name__])[0][:200]
            self.say.say(f"the best weights, of step {step}, could not be saved: {line}")

    def note(self, step: int, numbers: Any, state: Any) -> None:
        """Look at the metrics of one step: stop on trouble, show the line, write every few."""
        run, config = self.run_, self.run_.config
        values = {k: np.asarray(v).item() for k, v in jax.device_get(numbers).items()}
        if not values.pop("healthy"):
            self.stop_non_finite(step, values, state)
        elapsed = max(time.monotonic() - self.window[0], 1e-9)
        if self.fresh and self.rate:  # this step ran, at least in part, before the window began
            self.fresh, self.window[0] = False, time.monotonic()
        else:
            self.window[1] += 1
            self.rate, self.fresh = self.window[1] * config.optim.batch_size / elapsed, False
        rate = self.rate
        stall = self.window[2] / elapsed
        mfu = (
            run.network.flops_per_image * rate / (self.peak * run.mesh.size) if self.peak else None
        )
        epoch = step / run.steps_per_epoch
        if self.main:
            left = (run.total_steps - step) * config.optim.batch_size / rate
            line = (
                f"step {step}/{run.total_steps}  epoch {epoch:.1f}  loss {values['loss']:.4f}  "
                f"lr {values['learning_rate']:.2e}  {rate:.1f} img/s  data wait {stall:.0%}"
                + (f"  MFU {mfu:.0%}" if mfu is not None else "")
                + f"  left {duration(left)}"
            )
            self.say.show(line)
        if step % config.log.every_steps == 0 or step == run.total_steps:
            values |= {"epoch": epoch, "images_per_second": rate, "data_wait": stall}
            if mfu is not None:
                values["mfu"] = mfu
            if self.main:
                with self.survive_full_disk(f"the metrics of step {step}"):
                    self.writer.write_scalars(step, values)
            self.window = [time.monotonic(), 0, 0.0]
            self.fresh = False  # the next step runs whole inside the new window

    def save(self, step: int, state: Any) -> bool:
        """Save state and data position."""
        run = self.run_
        notes = {
            "step": step,
            "position": step * run.config.optim.batch_size,
            "seed": run.config.seed,
            "dataset_fingerprint": run.index.fingerprint,
            "best": self.best,
        }
        done = self.checkpoints.save(step, state, notes)
        if done and self.best is not None and self.main:
            # Only now: a run that resumes from an earlier checkpoint still finds its best weights.
            for old in self.folder.glob(f"{checkpoint.BEST}_*"):
                if old.name != f"{checkpoint.BEST}_{self.best['step']}":
                    shutil.rmtree(old, ignore_errors=True)
        self.window, self.fresh = [time.monotonic(), 0, 0.0], True
        return done

    def report(self, step: int, params: Any) -> None:
        """Evaluate, draw, and rewrite the page."""
        self.say.show(f"step {step}: evaluating", force=self.say.live)
        arrays = self.live.evaluate(params)
        if self.main:
            with self.survive_full_disk(f"the report of step {step}"):
                self.live.draw(step, arrays, len(self.skipped))
        self.keep_best(step, params)
        self.window, self.fresh = [time.monotonic(), 0, 0.0], True

    @contextlib.contextmanager
    def survive_full_disk(self, what: str) -> Iterator[None]:
        """Say that something could not be written, and go on."""
        try:
            yield
        except OSError as error:
            self.say.say(f"{what} could not be written: {error.strerror or error}")

    def stop_non_finite(self, step: int, values: dict[str, float], state: Any) -> None:
        """Write what is needed to run the step again, and stop."""
        run = self.run_
        place = self.folder / "failures" / f"step_{step}"
        place.mkdir(parents=True, exist_ok=True)
        numbers = run.order.batch(step - 1)
        # The state was frozen as it was before the step, so it can be replayed as it stands.
        checkpoint.save_tree(place / "state", state)
        if self.main:
            workdir.write_json(
                place / "capture.json",
                {
                    "step": step,
                    "seed": run.config.seed,
                    "loss": repr(values["loss"]),
                    "grad_norm": repr(values["grad_norm"]),
                    "indices": numbers.tolist(),
                    "names": [run.index.source.names[int(n)] for n in numbers],
                    "config": run.config.to_dict(),
                },
            )
        self.say.done()
        raise NonFiniteLossError(
            f"step {step}: the loss is {values['loss']} and its gradient norm {values['grad_norm']}. "
            f"Stopped before the update. Step, images, config and state are in '{place}'; "
            f"python scripts/replay_step.py {place} runs it again image by image"
        )

    def finish(self, step: int, state: Any, finished: bool, saved: bool) -> Result:
        """Say how it ended and where everything is."""
        code = f"{int(self.fingerprint(state.params)):08x}"
        page = self.live.folder / "index.html"
        path = self.checkpoints.path(step) if saved else None
        if finished and self.best is not None:
            self.say.show("predicting with the best weights", force=self.say.live)
            place = self.folder / f"{checkpoint.BEST}_{self.best['step']}"
            best = checkpoint.load_tree(place, state.params)
            self.live.final(best, self.best, len(self.skipped), self.main)
        if self.main:
            with self.survive_full_disk("the result"):
                if not page.exists() or (self.best is not None and not finished):
                    self.live.page(step, len(self.skipped))
                workdir.write_json(
                    self.folder / "result.json",
                    {
                        "step": step,
                        "finished": finished,
                        "params_fingerprint": code,
                        **{k: round(v, 6) for k, v in self.live.latest.items()},
                    },
                )
                self.writer.flush()
            ended = "finished" if finished else "stopped on request"
            self.say.say(f"{ended} at step {step}, parameter hash {code}")
            for name, value in self.live.latest.items():
                self.say.say(f"  {name.replace('_', ' '):32s} {value:.4f}")
            if self.live.conclusion:
                self.say.say(self.live.conclusion)
            self.say.say(f"pictures    {self.live.newest_picture()}")
            self.say.say(f"report      {page}")
            self.say.say(f"checkpoint  {path if path is not None else 'could not be saved'}")
            if not finished:
                self.say.say("run the same command again to go on")
        return Result(step, finished, page, path, code, state.params, self.live.latest)
