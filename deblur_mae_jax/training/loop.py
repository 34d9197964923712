"""The training loop, shared by all tasks: take a step, log the previous one, evaluate, save, stop."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deblur_mae_jax import sharding
from deblur_mae_jax.data import buckets
from deblur_mae_jax.data.source import BadImage, Skipped
from deblur_mae_jax.errors import StoreError, one_line
from deblur_mae_jax.performance import chips, profiling
from deblur_mae_jax.training.compilation import Program
from deblur_mae_jax.training.evaluator import Conclusion, Evaluator
from deblur_mae_jax.training.experiment import Experiment
from deblur_mae_jax.training.meter import Throughput
from deblur_mae_jax.training.progress import Progress, duration
from deblur_mae_jax.training.result import NonFiniteLossError, Result
from deblur_mae_jax.training.stop import Stop, Stopped
from deblur_mae_jax.training.train_step import TrainState, fingerprint
from deblur_mae_jax.training.watchdog import Watchdog
from deblur_mae_jax.workdir import checkpoint, goodput, metric_writer, run_folder, weights
from deblur_mae_jax.workdir.run_folder import BEST, Workdir

# The report of process 0 may take as long as so many evaluations.
FINISH = 12


@jax.jit
def _copied(params: Any) -> Any:
    return jax.tree.map(jax.numpy.copy, params)


@dataclasses.dataclass
class Loop:
    """The loop and the files it writes. It reads the metrics of a step while the next one runs.

    stop: requests to stop.
    clock: counts where the time goes.
    best: step and score of the best weights so far.
    tracer: records a trace of a few steps.
    unevaluated: whether the evaluation at this step was interrupted, and has to be made up for.
    """

    run: Experiment
    workdir: Workdir
    evaluator: Evaluator
    program: Program
    checkpoints: checkpoint.Checkpoints
    writer: metric_writer.Writer
    progress: Progress
    stop: Stop
    clock: goodput.Clock
    best: dict[str, Any] | None = None
    tracer: profiling.Tracer | None = None
    unevaluated: bool = False

    def __post_init__(self) -> None:
        self.main = jax.process_index() == 0
        self.meter = Throughput(self.run.config.optim.batch_size)
        self.peak = chips.peak_flops(jax.devices()[0].device_kind)
        self.latest: dict[str, float] = {}
        self.judged: int | None = None  # the step that was evaluated last
        self.unwritten: list[str] = []
        self.watchdog = Watchdog(self.run.config.hang_minutes)
        self._slowest = {"evaluate": 0.0, "save": 0.0}
        self.stop.alive = self.watchdog.again
        gone = self.best is not None and not self.workdir.best(self.best["step"]).exists()
        if sharding.on_any_process(gone) and self.best is not None:
            self.progress.print(f"the best weights, of step {self.best['step']}, are gone: the best is sought anew")
            # The step stays, so that a run that early stopping has ended is still over.
            self.best = self.best | {"score": -sys.float_info.max}

    def train(self, state: TrainState, start: int, first: Any, batches: Iterator[Any]) -> Result:
        """Take all steps after `start`.

        first: the batch of step `start` + 1.
        batches: the batches of the later steps.
        """
        run, batch, step = self.run, first, start
        pending: tuple[int, Any] | None = None
        # The step donates its input, so copy the initial parameters and evaluate them after step 1; compile errors
        # then show before the first slow report.
        untrained = _copied(state.params) if start == 0 else None
        if self.main:
            weights.forget_later_weights(self.workdir, start)
            run_folder.forget_later_sheets(self.workdir, start)
        with self.stop.deferred():
            self.clock.enter("steps")
            self.clock.at(step)
            if self.unevaluated and not self.is_over(step):
                self.try_to_evaluate(step, state)
            self.meter.restart()
            while not self.is_over(step) and not self.unevaluated:
                self.watchdog.step(step + 1)
                with self.watched(step + 1, pending):
                    state, numbers = self.program.step(state, run.arrays, batch)
                step += 1
                self.clock.at(step)
                if self.tracer is not None:
                    self.tracer.after(step, numbers, self.program.step)
                if untrained is not None:
                    jax.block_until_ready(numbers)
                    self.meter.tick()
                    self.progress.update("the first step is taken", force=True)
                    with self.saved_if_unreadable(step, state, evaluating=True):
                        self.evaluate(0, untrained)
                    untrained = None
                if pending is not None:
                    self.log(*pending, state)
                pending = (step, numbers)
                if step < run.total_steps:
                    pending = self.evaluate_and_save(step, state, pending)
                if self.stop.now():
                    break
                if step < run.total_steps:
                    with self.meter.waiting(), self.clock.part("data"), self.saved_if_unreadable(step, state):
                        batch = next(batches)
            if pending is not None:
                self.log(*pending, state)
            finished = self.is_over(step)
            self.progress.done()
            if finished and self.judged != step:  # early stopping has just evaluated it
                self.try_to_evaluate(step, state)
            saved = self.save(step, state)
            with self.timed("save"):
                saved = self.checkpoints.flush() and self.workdir.send() and saved
            self.watchdog.rest()
        if finished and self.unevaluated:
            raise Stopped(self.stop.number)
        return self.finish(step, state, finished, saved)

    def close(self) -> None:
        """Close every file."""
        with contextlib.ExitStack() as each:  # one that fails does not keep the others open
            each.callback(self.clock.write)
            each.callback(self.checkpoints.close)
            each.callback(self.close_writer)
            each.callback(self.watchdog.close)
            if self.tracer is not None:
                each.callback(self.tracer.close)

    def close_writer(self) -> None:
        """Close the metrics, whose last lines may not fit on a full disk."""
        with self.survive_full_disk("the last metrics"):
            self.writer.close()

    def is_over(self, step: int) -> bool:
        """Whether all steps are taken, or the validation score has not improved within the patience."""
        if step >= self.run.total_steps:
            return True
        # An evaluation that was stopped may still find the best weights.
        if self.best is None or self.unevaluated or not self.run.config.select.patience_epochs:
            return False
        seen = step - step % self.run.every(self.run.config.report.every_epochs)  # the last step that was evaluated
        return seen - self.best["step"] >= self.run.every(self.run.config.select.patience_epochs)

    @contextlib.contextmanager
    def watched(self, step: int, pending: Any) -> Iterator[None]:
        """Forbid implicit transfers between host and device during a step, and trace it if the user asked for that."""
        traced = self.tracer.around(step, pending) if self.tracer else contextlib.nullcontext()
        with jax.transfer_guard("disallow"), traced:
            yield

    @contextlib.contextmanager
    def saved_if_unreadable(self, step: int, state: TrainState, evaluating: bool = False) -> Iterator[None]:
        """If no image can be read any more, as when a drive is gone, save the state and ask for a new start.

        evaluating: whether the new start has to make up for an evaluation.
        """
        try:
            yield
        except BadImage as error:
            self.unevaluated |= evaluating
            # Other processes may still read their images, and would not take part in a save.
            alone = jax.process_count() == 1
            saved = alone and self.save(step, state) and self.checkpoints.flush()
            what = f"step {step} is saved" if saved else "the steps since the last checkpoint are lost"
            raise StoreError(f"{error}; {what}. Start the same command again") from error

    def evaluate_and_save(self, step: int, state: TrainState, pending: Any) -> Any:
        """Evaluate and save if this step calls for it. Returns the step whose metrics are still to be read."""
        config = self.run.config
        saves = step % self.run.every(config.checkpoint.every_epochs) == 0
        if saves:  # check a state before saving it
            self.log(pending[0], pending[1], state)
            pending = None
        if step % self.run.every(config.report.every_epochs) == 0:
            self.try_to_evaluate(step, state)
        if saves and not self.unevaluated:
            self.save(step, state)
        return pending

    def try_to_evaluate(self, step: int, state: TrainState) -> None:
        """Evaluate, unless that is stopped; a checkpoint then notes that the evaluation has to be made up for."""
        try:
            with self.saved_if_unreadable(step, state, evaluating=True):
                self.evaluate(step, state.params)
            self.unevaluated = False
        except Stopped:
            self.unevaluated = True

    @contextlib.contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """An evaluation or a save: count its time, and let `--max_hours` leave enough time for the next one."""
        started = time.monotonic()
        with self.clock.part(part), self.watchdog.longer(f"to {part}"):
            yield
        self._slowest[part] = max(self._slowest[part], time.monotonic() - started)
        self.stop.reserve = sum(self._slowest.values()) + self.watchdog.typical

    def log(self, step: int, numbers: Any, state: TrainState) -> None:
        """Read the metrics of one step: stop if they are not finite, show the progress line, log every few steps."""
        run, config, meter = self.run, self.run.config, self.meter
        values = {k: np.asarray(v).item() for k, v in jax.device_get(numbers).items()}
        if not values.pop("healthy"):
            self.stop_non_finite(step, values, state)
        meter.tick()
        epoch = step / run.steps_per_epoch
        flops = run.network.flops_per_image * meter.rate
        speed = {"images_per_second": meter.rate, "data_wait": meter.stall}
        if self.peak:
            speed["mfu"] = flops / (self.peak * run.mesh.size)
        if self.main:
            mfu = f"  MFU {speed['mfu']:.0%}" if "mfu" in speed else ""
            self.progress.update(
                f"step {step}/{run.total_steps}  epoch {epoch:.1f}  loss {values['loss']:.4f}  "
                f"lr {values['learning_rate']:.2e}  {meter.rate:.1f} img/s  data wait {meter.stall:.0%}{mfu}"
                f"  left {duration(meter.seconds(run.total_steps - step))}"
            )
        if step % config.log.every_steps == 0 or step == run.total_steps:
            if self.main:
                with self.survive_full_disk(f"the metrics of step {step}"):
                    self.writer.write_scalars(step, values | {"epoch": epoch} | speed)
            meter.restart()

    def evaluate(self, step: int, params: Any) -> None:
        """Evaluate the network, write the report, keep the best weights."""
        self.progress.update(f"step {step}: evaluating", force=self.progress.live)
        with self.timed("evaluate"):
            judgement = self.evaluator.evaluate(params)
            self.gather_failures()
            self.latest, self.judged = judgement.scalars, step
            if self.main:
                with self.survive_full_disk(f"the report of step {step}"):
                    self.writer.write_scalars(step, judgement.scalars)
                    self.writer.write_images(step, judgement.images)
                    self.evaluator.write(step, judgement)
            if step or self.run.starts_trained:  # an untrained head may be right by chance, but has learned nothing
                self.keep_best(step, judgement.score, params)
            self.workdir.send()
        self.meter.pause()

    def gather_failures(self) -> None:
        """Let the first process, which lists them, know which files other processes could not read."""
        loader = self.run.loader
        for items in sharding.gathered([[item.name, item.reason] for item in loader.failed]):
            for name, reason in items if self.main else ():
                loader.report(Skipped(name, reason))

    def keep_best(self, step: int, score: float | None, params: Any) -> None:
        """Save the weights if their validation score is the best so far, by the score of process 0."""
        score = sharding.gathered(None if score is None else float(score))[0]
        if score is None or (self.best is not None and score <= self.best["score"]) or self.workdir.taken_over:
            return
        try:
            checkpoint.on_all(functools.partial(weights.save_tree, self.workdir.best(step), params))
            self.best = {"step": step, "score": score}
        except Exception as error:  # a full disk or a lost mount can raise many kinds of errors
            if self.main:
                with contextlib.suppress(Exception):
                    weights.remove_unfinished(self.workdir)  # a full disk would stay full
            said = f"the best weights, of step {step}, could not be saved: {one_line(error)}"
            self.run.notes.append(said)  # for the report, which judges older weights
            self.progress.print(said)

    def save(self, step: int, state: TrainState) -> bool:
        """Save the state. Returns whether it is kept."""
        notes = {
            "step": step,
            "position": step * self.run.config.optim.batch_size,
            "seed": self.run.config.seed,
            "dataset_fingerprint": self.run.index.fingerprint,
            "best": self.best,
            "unevaluated": self.unevaluated,
        }

        def delete_older_weights() -> None:
            """Only those that no kept checkpoint names: a run may have to resume from any of them."""
            if self.best is None or not self.main:
                return
            kept = {int(notes["best"]["step"]) for notes in self.checkpoints.notes() if notes.get("best")}
            for old in self.workdir.arrays.glob(f"{BEST}_*"):
                number = old.name.rpartition("_")[2]  # of a save that was killed, no number
                if number.isdigit() and int(number) < self.best["step"] and int(number) not in kept:
                    buckets.remove(old)

        with self.timed("save"):
            if self.checkpoints.by_size:
                notes["fingerprint"] = int(jax.jit(fingerprint)(state.params))
            kept = not self.workdir.taken_over and self.checkpoints.save(step, state, notes, delete_older_weights)
            self.workdir.send()
        self.clock.at(step, saved=True)
        self.meter.pause()
        return kept

    @contextlib.contextmanager
    def survive_full_disk(self, what: str) -> Iterator[None]:
        """Report that something could not be written, and continue."""
        try:
            yield
        except OSError as error:
            self.unwritten.append(what)
            self.progress.print(f"{what} could not be written: {error.strerror or error}")

    def stop_non_finite(self, step: int, values: dict[str, float], state: TrainState) -> None:
        """Save what is needed to replay the step, then raise `NonFiniteLossError`."""
        folder = self.workdir.failure(step)
        try:
            self.capture(folder, step, values, state)
            said = (
                f"Step, images, config and state are in '{folder}'; python scripts/replay_step.py {folder} runs it "
                "again image by image"
            )
        except Exception as error:  # a full disk must not hide why the run ends
            said = f"The step could not be saved for a replay: {one_line(error)}"
        self.progress.done()
        raise NonFiniteLossError(
            f"step {step}: the loss is {values['loss']} and its gradient norm {values['grad_norm']}. "
            f"Stopped before the update. {said}"
        )

    def capture(self, folder: Any, step: int, values: dict[str, float], state: TrainState) -> None:
        """Save what is needed to replay a step. The state is still the one before it."""
        run, numbers = self.run, self.run.order.batch(step - 1)
        folder.mkdir(parents=True, exist_ok=True)
        weights.save_tree(folder / "state", state)
        if self.main:
            capture = {
                "step": step,
                "seed": run.config.seed,
                "loss": repr(values["loss"]),
                "grad_norm": repr(values["grad_norm"]),
                "indices": numbers.tolist(),
                "names": [run.index.source.names[int(n)] for n in numbers],
                "config": run.config.to_dict(),
            }
            run_folder.write_json(folder / "capture.json", capture)

    def finish(self, step: int, state: TrainState, finished: bool, saved: bool) -> Result:
        """Run the final evaluation, write `result.json`, and print the result."""
        code = f"{int(jax.jit(fingerprint)(state.params)):08x}"
        path = self.checkpoints.path(step) if saved else None
        judged, best = step, None
        if finished and self.best is not None:
            self.progress.update("predicting with the best weights", force=self.progress.live)
            judged = self.best["step"]
            best = weights.load_best(self.workdir.best(judged), state.params)
        conclusion = Conclusion(self.latest, "", self.workdir.report)
        self.clock.enter("evaluate")
        self.clock.write()
        self.unwritten[:] = [] if saved or not finished else ["the state of the last step"]
        # Another process may be frozen; the report of one process may take as long as it needs.
        watched = self.watchdog.longer("to finish", FINISH) if jax.process_count() > 1 else contextlib.nullcontext()
        with self.survive_full_disk("the report"), watched:
            conclusion = self.evaluator.finish(judged, best, self.main)
        self.gather_failures()
        measures = conclusion.measures
        if self.main:
            with self.survive_full_disk("the result"):
                rounded = {k: round(v, 6) for k, v in measures.items()}
                ended = {"step": step, "finished": finished and not self.unwritten, "params_fingerprint": code}
                run_folder.write_json(self.workdir.result, ended | rounded)
                self.writer.flush()
            self.workdir.send()
            self.conclude(step, finished, code, conclusion, path)
        number = 0 if finished else self.stop.number
        lost = tuple(self.unwritten)
        return Result(step, finished, self.workdir.page, path, code, state.params, measures, number, lost)

    def conclude(self, step: int, finished: bool, code: str, conclusion: Conclusion, path: Path | None) -> None:
        """Print how the run ended and where its files are."""
        ended = "finished" if finished else "stopped on request"
        lines = [f"{ended} at step {step}, parameter hash {code}"]
        for name, value in conclusion.measures.items():
            low_high = conclusion.intervals.get(name)
            interval = f"  (95 %: {low_high[0]:.4f} to {low_high[1]:.4f})" if low_high else ""
            lines.append(f"  {name.replace('_', ' '):32s} {value:.4f}{interval}")
        lines += [conclusion.text] if conclusion.text else []
        lines += [
            f"figures     {self.workdir.shown(conclusion.figure)}",
            f"report      {self.workdir.shown(self.workdir.page)}",
            f"checkpoint  {self.workdir.shown(path) if path is not None else 'could not be saved'}",
            f"time        {goodput.line(self.clock.starts)}",
        ]
        if self.unwritten:
            lines.append(f"not written: {', '.join(self.unwritten)}; run the same command again to write it")
        lines += [] if finished else ["run the same command again to resume"]
        for line in lines:
            self.progress.print(line)
