"""`run(config, workdir)`: whatever a config asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deblur_mae_jax import lookup
from deblur_mae_jax.errors import UserError

# What the loop does not train: `config.task.name`, and the module whose `run` does it.
PROGRAMS = {"blur_search": "search", "probe": "probe"}


def run(config: ConfigDict, workdir: str | Path, dry_run: bool = False, profile: bool = False) -> Any:
    """Train, or run the program that `config.task.name` names; the same call again resumes.

    dry_run: compile, take two steps, print what they cost.
    profile: trace a few training steps; only what the loop trains has steps.
    Raises `UserError` for bad input and `NonFiniteLossError` when a loss is not finite.
    """
    from deblur_mae_jax import train
    from deblur_mae_jax.training import compilation

    program = PROGRAMS.get(config.task.name)
    if program is None:
        return train.train_and_evaluate(config, workdir, dry_run, profile)
    if profile:
        raise UserError(f"--profile traces training; config.task.name={config.task.name} trains nothing")
    compilation.use_compilation_cache(config.compilation_cache)
    return lookup.module("commands", program, "run", "config.task.name").run(config, workdir, dry_run)
