"""Save and restore a run. Beside `weights.py` this is the only module that uses Orbax."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from deblur_mae_jax.data import buckets
from deblur_mae_jax.errors import StoreError, UserError, one_line, unknown
from deblur_mae_jax.workdir.run_folder import COMMITTED, Workdir, write_json

CHECKSUMS = "checksums.json"
UNREADABLE = "unreadable.json"
# How long `meet` waits, hours.
MEETING_HOURS = 2
# How long processes wait until they see the same checkpoints, seconds.
SAME_STEPS = 60.0
WRITES = ("auto", "on", "off")
COMMITS = {"rename": ocp.options.AtomicityMode.AUTO, "file": ocp.options.AtomicityMode.COMMIT_FILE}


def _checksum(file: Path) -> int:
    value = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            value = zlib.crc32(block, value)
    return value


def _files(folder: Any) -> dict[str, Any]:
    return {name: p for name, p in buckets.files(folder).items() if p.name not in (CHECKSUMS, COMMITTED, UNREADABLE)}


def _checksums(folder: Any) -> dict[str, int]:
    """CRC-32 of every file of a checkpoint, by path."""
    files = _files(folder)
    with ThreadPoolExecutor(8) as pool:  # reading and summing leave Python's lock
        return dict(zip(files, pool.map(_checksum, files.values()), strict=True))


def _sizes(folder: Any) -> dict[str, dict[str, int]]:
    """The size of every file of a checkpoint, by path: known without reading the files again."""
    return {name: {"bytes": buckets.size(path)} for name, path in _files(folder).items()}


def absolute(folder: Any) -> Any:
    """The folder as Orbax wants it. Addresses are absolute."""
    return folder.resolve() if isinstance(folder, Path) else folder


def check_files(folder: Path) -> None:
    """Raise `ValueError` if a file differs from its checksum, or from its size if that alone was noted.

    The check runs before Orbax opens anything, because a read that fails inside Orbax leaves other reads
    running, which later raise unrelated errors. A process that is killed between the save and its checksums
    leaves none; such a checkpoint is complete and is read without them.
    """
    path = folder / CHECKSUMS
    if path.exists():
        saved = json.loads(path.read_text())
        by_size = any(isinstance(value, dict) for value in saved.values())
        computed: dict[str, Any] = {**(_sizes(folder) if by_size else _checksums(folder))}
        # Other files, such as .DS_Store, were put there by other programs, and Orbax does not read them.
        for name in sorted(saved):
            if saved[name] != computed.get(name):
                raise Damaged(f"'{name}' is not as it was saved")


def _remove_unfinished(folder: Any) -> None:
    """Delete what saves left that were killed or failed; they may be as large as a checkpoint."""
    if isinstance(folder, Path):
        for path in folder.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)


def _mark_unreadable(folder: Path, error: Exception) -> None:
    """Note that a process cannot read a checkpoint, so that the next start sets it aside."""
    with contextlib.suppress(OSError):
        write_json(folder / UNREADABLE, {"process": jax.process_index(), "error": one_line(error)})


def _refuse_marked(folder: Path) -> None:
    if (folder / UNREADABLE).exists():
        said = json.loads((folder / UNREADABLE).read_text())
        raise ValueError(f"process {said['process']} could not read it at an earlier start: {said['error']}")


class Damaged(ValueError):
    """A checkpoint is not what was saved. Other errors may be those of a store that cannot be reached."""


def _require_intact(found: Restored, intact: Callable[[Restored], bool]) -> None:
    if not intact(found):
        raise Damaged("its parameters are not those that were saved")


@contextlib.contextmanager
def exchanging() -> Iterator[None]:
    """Raise `StoreError` if another process ends during an exchange, which says nothing about a checkpoint."""
    try:
        yield
    except Exception as error:  # JAX raises many kinds of errors for it
        raise StoreError(
            f"--workdir: another process of this run has ended: {one_line(error)}. Start the same command again"
        ) from error


def on_all(check: Callable[[], None]) -> None:
    """Run a function on every process. Raise on all of them if it fails on one, so that all go on in the same way."""
    problem: Exception | None = None
    try:
        check()
    except Exception as error:  # damage shows in as many ways as there are files
        problem = error
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        own = 0 if problem is None else 1 if isinstance(problem, Damaged) else 2
        with exchanging():
            all_own = np.asarray(multihost_utils.process_allgather(np.array(own)))
        if all_own.any():  # the same kind on every process
            kind = Damaged if all_own.max() == 1 else ValueError
            said = f"it failed on process {np.flatnonzero(all_own)[0]}" if problem is None else one_line(problem)
            problem = problem if own == all_own.max() else kind(said)
    if problem is not None:
        raise problem


@dataclasses.dataclass
class Restored:
    """A restored checkpoint: the state, its step, and the notes saved with it."""

    state: Any
    step: int
    notes: dict[str, Any]


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """Whether the processes have agreed to stop: never, since the training loop asks JAX for that.

        Orbax would ask with its own number at each save. The processes agree on the next number that is asked with, so
        a smaller one moves their agreement into the past, and none of them stops.
        """
        return False


def check(keep_last: int, commit: str, write: str) -> None:
    """Raise `UserError` for settings of `config.checkpoint` that do not exist."""
    if commit not in COMMITS:
        raise unknown("config.checkpoint.commit", commit, COMMITS)
    if write not in WRITES:
        raise unknown("config.checkpoint.async_save", write, WRITES)
    if keep_last < 1:
        raise UserError(f"config.checkpoint.keep_last={keep_last} must be at least 1")


class Checkpoints:
    """Checkpoints of one run: it keeps the newest `keep_last`, and one every `keep_every` steps.

    A save is atomic: if the process is killed or the disk is full, the previous checkpoint is unchanged.

    asynchronous: whether files are written while training goes on; the next save, `flush` and `close` wait for them.
    """

    def __init__(
        self, folder: Any, keep_last: int = 3, keep_every: int = 0, commit: str = "rename", write: str = "off"
    ):
        check(keep_last, commit, write)
        self.asynchronous = write == "on" or (write == "auto" and jax.default_backend() != "cpu")
        # Nothing is read back while training goes on, or from a store.
        self.by_size = self.asynchronous or not isinstance(folder, Path)
        self._pending: tuple[int, Callable[[], None]] | None = None
        self.folder = folder
        self.broken: list[int] = []
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep_last,
            keep_period=keep_every or None,
            create=True,
            enable_async_checkpointing=self.asynchronous,
            step_prefix="step",
            atomicity_options=ocp.options.AtomicityOptions(mode=COMMITS[commit]),
        )
        if commit == "file" and jax.process_index() == 0:
            for checksums in folder.glob(f"step_*/{CHECKSUMS}"):  # complete, from a start with commit=rename
                checksums.with_name(COMMITTED).touch()
        if jax.process_index() == 0:
            _remove_unfinished(folder)
        self._manager = _Manager(absolute(folder), options=options)

    def latest_step(self) -> int | None:
        """The newest saved step."""
        return self._manager.latest_step()

    def path(self, step: int) -> Path:
        """The folder of a step."""
        return self.folder / f"step_{step}"

    def notes(self) -> list[dict[str, Any]]:
        """The notes of every kept checkpoint."""
        return [notes_of(self.path(step)) for step in self._manager.all_steps()]

    def save(self, step: int, state: Any, notes: dict[str, Any], then: Callable[[], None] = lambda: None) -> bool:
        """Save `state` and JSON `notes`. On failure, warn and return false; the run continues.

        then: called when the checkpoint is complete.
        """
        self.flush()
        if step in self._manager.all_steps():
            return True  # with its own notes, which may name older best weights
        arguments = ocp.args.Composite(state=ocp.args.StandardSave(state), notes=ocp.args.JsonSave(notes))
        try:
            self._manager.save(step, args=arguments, force=True)
        except Exception as error:  # a full disk or a lost mount can raise many kinds of errors
            return self._failed(step, error)
        self._pending = step, then
        return True if self.asynchronous else self.flush()

    def flush(self) -> bool:
        """Wait until the checkpoint that is being written is complete. On failure, warn and return false."""
        if self._pending is None:
            return True
        (step, then), self._pending = self._pending, None
        try:
            self._manager.wait_until_finished()
            if jax.process_index() == 0:
                folder = self.path(step)
                write_json(folder / CHECKSUMS, _sizes(folder) if self.by_size else _checksums(folder))
        except Exception as error:  # as above
            return self._failed(step, error)
        try:
            then()
        except Exception as error:  # the checkpoint is safe; what follows from it is tidying up
            logging.warning("after the checkpoint of step %d: %s", step, one_line(error))
        return True

    def _failed(self, step: int, error: Exception) -> bool:
        newest = max((s for s in self._manager.all_steps() if s != step), default=None)
        logging.error(
            "checkpoint of step %d could not be saved (%s); training continues, %s",
            step,
            one_line(error),
            f"step {newest} is still there" if newest is not None else "no earlier one exists",
        )
        if jax.process_index() == 0:
            _remove_unfinished(self.folder)  # a full disk would stay full
        self._manager.reload()
        return False

    def restore_latest(self, template: Any, intact: Callable[[Restored], bool] = lambda _: True) -> Restored | None:
        """Return the newest readable checkpoint, or `None` if no checkpoint exists.

        Damaged checkpoints are reported and skipped. If all are damaged, raises `UserError`, because a new
        start would silently overwrite them.

        template: the state as arrays, or as shapes with shardings.
        intact: whether a restored state is the one that was saved.
        """
        steps, certain = self._steps_of_all(), list[bool]()
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        for step in steps:
            try:
                on_all(functools.partial(_refuse_marked, self.path(step)))
                on_all(functools.partial(check_files, self.path(step)))
                found = self._read(step, shapes)
                on_all(functools.partial(_require_intact, found, intact))
            except StoreError:
                raise
            except Exception as error:  # damage shows in as many ways as there are files
                if not isinstance(self.folder, Path) and not isinstance(error, Damaged):
                    raise StoreError(
                        f"--workdir: checkpoint '{self.path(step)}' cannot be read: {one_line(error)}. Nothing was "
                        "removed; start the same command again"
                    ) from error
                logging.warning("checkpoint %s is damaged: %s", self.path(step), one_line(error))
                self.broken.append(step)
                certain.append(isinstance(error, Damaged))
                continue
            # Later steps must make room, or the run could not save those steps again.
            for later, damaged in zip(self.broken, certain, strict=True):
                if damaged:
                    self._manager.delete(later)
                else:
                    self._set_aside(later)
            return found
        if steps:
            raise UserError(
                f"all checkpoints in {self.folder} are damaged (steps {steps}); move the folder "
                "away to start from the beginning"
            )
        return None

    def _steps_of_all(self) -> list[int]:
        """The saved steps, the newest first. All processes wait until they see the same ones.

        A network drive may show a process an earlier state of a folder for some seconds. Raises `StoreError` if it
        stays so.
        """
        end = time.monotonic() + SAME_STEPS
        while True:
            steps = sorted(self._manager.all_steps(), reverse=True)
            if jax.process_count() == 1:
                return steps
            from jax.experimental import multihost_utils

            newest = np.full(64, -1, np.int32)
            newest[: len(steps[:64])] = steps[:64]
            with exchanging():
                seen = np.asarray(multihost_utils.process_allgather(np.append(newest, time.monotonic() > end)))
            if (seen[:, :-1] == seen[0, :-1]).all():
                return steps
            if seen[:, -1].any():
                listed = sorted({int(row[0]) for row in seen})
                raise StoreError(
                    f"--workdir: the processes see different checkpoints in '{self.folder}' (the newest are "
                    f"{listed}): all of them need the same folder. Start the same command again"
                )
            time.sleep(2)
            self._manager.reload()

    def _read(self, step: int, shapes: Any) -> Restored:
        """Read a checkpoint; a second time if that fails, as a network drive may for a moment.

        Several processes read it together, and the others wait for one that fails. So this one marks the checkpoint
        and ends the run; the next start goes on from an earlier one. Raises `StoreError` then.
        """
        wanted = ocp.args.Composite(state=ocp.args.StandardRestore(shapes), notes=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=wanted)
        except Exception as error:  # damage shows in as many ways as there are files
            if jax.process_count() > 1:
                # A store that fails for a moment says so in many ways, and nothing in it is set aside.
                if isinstance(self.folder, Path) and not isinstance(error, OSError):
                    _mark_unreadable(self.path(step), error)
                raise StoreError(
                    f"--workdir: checkpoint '{self.path(step)}' cannot be read: {one_line(error)}. Start the same "
                    "command again: it goes on from an earlier checkpoint if this one cannot be read"
                ) from error
            if not isinstance(error, OSError):
                raise
            logging.warning("checkpoint %s is read again: %s", self.path(step), one_line(error))
            restored = self._manager.restore(step, args=wanted)
        return Restored(restored["state"], step, restored["notes"])

    def _set_aside(self, step: int) -> None:
        """Move a checkpoint that could not be read, but may be whole, to the folder `unreadable` of the workdir."""
        if jax.process_index() == 0:
            place = Path(self.folder).parent / "unreadable" / f"{self.path(step).name}_{time.time_ns()}"
            place.parent.mkdir(exist_ok=True)
            shutil.move(self.path(step), place)
            logging.warning("it may be whole, so it was moved to %s", place)
        meet(f"step {step} is set aside")
        self._manager.reload()

    def close(self) -> None:
        """Wait for pending saves."""
        self.flush()
        self._manager.close()


def meet(what: str) -> None:
    """Wait until all processes of the run are here, without using a device or a processor.

    A process that waits for the others inside of a compiled program may use all processors of its machine, which the
    others still need.

    what: a name for this place, different from those of others.
    """
    # Orbax adds a number to each key, so a place can be reached again.
    ocp.multihost.get_barrier_sync_fn()(key=what.replace(" ", "_"), timeout_ms=MEETING_HOURS * 3_600_000)


def service() -> Any:
    """The client of the service by which JAX's processes find each other; it can keep texts for all of them."""
    return ocp.multihost.get_jax_distributed_client()


def open_run(workdir: Workdir, settings: ConfigDict) -> Checkpoints:
    """Return the checkpoints of a run.

    settings: `config.checkpoint`.
    """
    s = settings
    return Checkpoints(workdir.checkpoints, s.keep_last, s.keep_every, s.commit, s.async_save)


def notes_of(checkpoint: Path) -> dict[str, Any]:
    """The notes of a checkpoint."""
    return json.loads((checkpoint / "notes" / "metadata").read_text())
