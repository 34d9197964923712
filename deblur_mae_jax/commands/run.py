"""`run(config, workdir)`: run the program that a config selects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from deblur_mae_jax import lookup
from deblur_mae_jax.data.index import Unusable, write_skipped
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.workdir.run_folder import Workdir

# Tasks without a training loop: `config.task.name`, and the module with its `run`.
PROGRAMS = {"blur_search": "search", "probe": "probe"}


def run(config: ConfigDict, workdir: str | Path, dry_run: bool = False, profile: bool = False) -> Any:
    """Train, or run the program that `config.task.name` selects. The same call again resumes a run.

    Raises `UserError` for invalid input and `NonFiniteLossError` if a loss is not finite.

    dry_run: compile, take two steps, and print their cost.
    profile: trace a few training steps; only for tasks that train.
    """
    from deblur_mae_jax import train
    from deblur_mae_jax.performance import compile_cache

    program = PROGRAMS.get(config.task.name)
    if profile and program is not None:
        raise UserError(f"--profile traces training; config.task.name={config.task.name} trains nothing")
    try:
        if program is None:
            return train.train_and_evaluate(config, workdir, dry_run, profile)
        compile_cache.use(config.compilation_cache)
        return lookup.module("commands", program, "run", "config.task.name").run(config, workdir, dry_run)
    except Unusable as error:
        if dry_run or jax.process_index() != 0:
            raise
        listed = Workdir(workdir).skipped
        listed.parent.mkdir(parents=True, exist_ok=True)
        write_skipped(listed, error.skipped)
        raise Unusable(f"{error}; all are listed in '{listed}'", error.skipped) from error
