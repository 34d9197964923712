"""Weights of a run outside of its checkpoints: the best ones, and the parameters alone of a checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from deblur_mae_jax.data import buckets
from deblur_mae_jax.errors import StoreError, UserError, one_line
from deblur_mae_jax.workdir import checkpoint
from deblur_mae_jax.workdir.run_folder import BEST, Workdir


def load_params(workdir: Workdir, shapes: Callable[[], Any]) -> Any:
    """Return the parameters of the run in `workdir` as NumPy arrays, the best ones or else the newest.

    Raises `UserError` if no checkpoint can be read.

    shapes: returns the parameter tree as shapes. It is called while the files are checked.
    """
    with ThreadPoolExecutor(1) as pool:
        return _load_params(workdir, pool.submit(shapes))


def _load_params(workdir: Workdir, shapes: Future[Any]) -> Any:
    best = sorted(workdir.arrays.glob(f"{BEST}_*"), key=_step_of)
    steps = sorted(workdir.checkpoints.glob("step_*"), key=_step_of, reverse=True)
    steps = [p for p in steps if p.name.split("_")[1].isdigit() and workdir.is_committed(p)]
    if steps and best and _step_of(best[-1]) < _best_of(steps[0]):
        logging.warning(
            "the best weights of '%s' are gone, so those of step %d are used", workdir.path, _step_of(steps[0])
        )
        best = []
    if not best and not steps:
        raise UserError(f"'{workdir.path}' holds no checkpoint: it is no run, or one that saved nothing yet")
    for path in [*best[-1:], *steps]:
        try:
            if path in steps:
                checkpoint.check_files(path)
                return _restore_numpy(path / "state", {"params": shapes.result()})["params"]
            return _restore_numpy(path, shapes.result())
        except Exception as error:  # damage shows in as many ways as there are files
            logging.warning("checkpoint %s cannot be used: %s", path, one_line(error))
    shapes.result()  # raises what is wrong with the config
    raise UserError(f"no checkpoint in '{workdir.path}' can be read with its config")


def _best_of(folder: Path) -> int:
    """The step of the best weights when this checkpoint was saved; -1 if there were none."""
    try:
        best = checkpoint.notes_of(folder).get("best")
    except (OSError, ValueError):
        return -1
    return int(best["step"]) if best else -1


def forget_later_weights(workdir: Workdir, step: int) -> None:
    """Delete the best weights of steps after `step`, from which the run goes on: they are of another future.

    Also what saves left that were killed.
    """
    remove_unfinished(workdir)
    for path in workdir.arrays.glob(f"{BEST}_*"):
        if _step_of(path) > step:
            buckets.remove(path)


def remove_unfinished(workdir: Workdir) -> None:
    """Delete what saves of best weights left that were killed or failed; each may be as large as the weights."""
    for path in workdir.arrays.glob(f"{BEST}_*.orbax-checkpoint-tmp*"):
        buckets.remove(path)


def _step_of(path: Path) -> int:
    number = path.name.rsplit("_", 1)[1]
    return int(number) if number.isdigit() else -1


def _restore_numpy(path: Path, shapes: Any) -> Any:
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), shapes)
    as_numpy = jax.tree.map(lambda x: ocp.RestoreArgs(restore_type=np.ndarray), like)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        restored = reader.restore(
            checkpoint.absolute(path),
            args=ocp.args.PyTreeRestore(item=like, restore_args=as_numpy, partial_restore=True),
        )
    wrong = [
        name.shape for name, want in zip(jax.tree.leaves(restored), jax.tree.leaves(like), strict=True)
        if name.shape != want.shape
    ]  # fmt: skip
    if wrong:
        raise ValueError(f"{len(wrong)} arrays have a different shape, the first is {wrong[0]}")
    return restored


def save_tree(path: Path, tree: Any) -> None:
    """Save one tree of arrays, separate from the checkpoints of the run."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(checkpoint.absolute(path), tree, force=True)


def load_best(path: Path, template: Any) -> Any:
    """The best weights of a run. Raises `UserError` if they cannot be read, `StoreError` if a store fails."""
    try:
        try:
            return load_tree(path, template)
        except OSError as error:  # a network drive may fail for a moment
            logging.warning("the best weights in %s are read again: %s", path, one_line(error))
            return load_tree(path, template)
    except Exception as error:  # damage shows in as many ways as there are files
        if not isinstance(path, Path):
            raise StoreError(
                f"--workdir: the best weights in '{path}' cannot be read: {one_line(error)}. Start the same command "
                "again"
            ) from error
        raise UserError(
            f"the best weights in '{path}' cannot be read: {one_line(error)}. Move this folder away and start the "
            "same command again: then the weights of the last step are evaluated"
        ) from error


def load_tree(path: Path, template: Any) -> Any:
    """Load a tree saved by `save_tree`."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(checkpoint.absolute(path), template)
