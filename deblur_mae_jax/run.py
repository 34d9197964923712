"""`run(config, workdir)`: whatever a config asks for."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deblur_mae_jax.errors import UserError

# What is not trained by the loop: `config.task.name` and the module whose `run` does it.
PROGRAMS = {"blur_search": "search_run", "probe": "probes"}


def run(
    config: ConfigDict, workdir: str | Path, dry_run: bool = False, profile: bool = False
) -> Any:
    """Train, or run the program that `config.task.name` names; the same call again resumes.

    profile: trace a few training steps (`profiling.Tracer`); only what the loop trains has steps.
    Raises `UserError` for bad input and `NonFiniteLossError` when a loss is not finite.
    """
    from deblur_mae_jax import cost, train

    program = PROGRAMS.get(config.task.name)
    if program is None:
        return train.train_and_evaluate(config, workdir, dry_run, profile)
    if profile:
        raise UserError(
            f"--profile traces training; config.task.name={config.task.name} trains nothing"
        )
    cost.use_compilation_cache(config.compilation_cache)
    return importlib.import_module(f"deblur_mae_jax.{program}").run(config, workdir, dry_run)
