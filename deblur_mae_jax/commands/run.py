"""`run(config, workdir)`: run the program that a config selects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deblur_mae_jax import lookup
from deblur_mae_jax.errors import UserError

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
    if program is None:
        return train.train_and_evaluate(config, workdir, dry_run, profile)
    if profile:
        raise UserError(f"--profile traces training; config.task.name={config.task.name} trains nothing")
    compile_cache.use(config.compilation_cache)
    return lookup.module("commands", program, "run", "config.task.name").run(config, workdir, dry_run)
