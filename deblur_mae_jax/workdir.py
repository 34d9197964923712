"""The folder of a run: whose it is, and what the run was made of."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from deblur_mae_jax.errors import UserError

# May change between two starts in the same workdir: they change what is written or where things
# are kept, never a result (beyond rounding, in the case of attention).
FREE = (
    "checkpoint.",
    "report.",
    "log.",
    "data.root",
    "data.store",
    "data.num_threads",
    "data.num_workers",
    "data.max_bad_fraction",
    "compilation_cache",
    "search.cache",
    "search.batch_size",
    "infer.batch_size",
    "model.attention",
)
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "scipy",
    "pillow",
    "ml-collections",
    "scikit-learn",
    "clu",
    "tensorflow-datasets",
)


def flat(config: ConfigDict) -> dict[str, Any]:
    """Dotted names to plain values, tuples as lists (as JSON gives them back)."""
    out: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        for key, value in node.items():
            name = f"{prefix}{key}"
            if isinstance(value, (dict, ConfigDict)):
                walk(f"{name}.", value)
            else:
                out[name] = list(value) if isinstance(value, tuple) else value

    walk("", config)
    return out


def nested(values: dict[str, Any]) -> ConfigDict:
    """The inverse of `flat`, lists as tuples."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        node = out
        *parts, leaf = name.split(".")
        for part in parts:
            node = node.setdefault(part, {})
        node[leaf] = tuple(value) if isinstance(value, list) else value
    return ConfigDict(out, type_safe=False)


def write_json(path: Path, value: Any) -> None:
    """JSON that is there whole or not at all."""
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(json.dumps(value, indent=2, default=str) + "\n")
    os.replace(draft, path)


def is_started(workdir: Path) -> bool:
    """Whether a run left anything there that a new one must not lose."""
    kept = ("checkpoints/step_*", "best_*", "predictions.csv", "blur_search.csv")
    return any(next(workdir.glob(pattern), None) is not None for pattern in kept)


def claim(workdir: Path, config: ConfigDict) -> None:
    """Take `workdir` for this config, or refuse it when another run lives there.

    What a first try left that failed before its first checkpoint is taken over.

    Raises `UserError` showing what differs.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir: cannot use '{workdir}': {error.strerror}") from error
    path = workdir / "config.json"
    new = json.loads(json.dumps(flat(config), default=str))
    if path.exists() and is_started(workdir):
        try:
            old = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"--workdir: '{path}' is not readable JSON: {error}") from error
        differ = sorted(
            key
            for key in old.keys() | new.keys()
            if old.get(key) != new.get(key) and not key.startswith(FREE)
        )
        if differ:
            lines = "; ".join(f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in differ)
            raise UserError(
                f"--workdir: '{workdir}' belongs to a run with another config ({lines}). "
                "Use another workdir, or the same config to go on with that run"
            )
    if jax.process_index() == 0:
        write_json(path, new)


def check_data(workdir: Path, fingerprint: str, num_images: int) -> None:
    """Refuse to go on in `workdir` with other images than the run started with."""
    path = workdir / "dataset.json"
    if path.exists() and is_started(workdir):
        before = json.loads(path.read_text())
        if before["fingerprint"] != fingerprint:
            raise UserError(
                f"config.data.root: the images are not those this run started with "
                f"({before['num_images']} images, fingerprint {before['fingerprint']}, in "
                f"'{workdir}'; now {num_images}, {fingerprint}). Use another workdir"
            )


def git_state() -> dict[str, Any]:
    """Commit of the code, and whether it was changed; empty outside a repository."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {}
    # What a benchmark wrote just before is not a change of the program.
    changed = git("status", "--porcelain", "--", ":(top)", ":(top,exclude)benchmarks/results")
    return {"commit": commit, "modified": bool(changed)}


def environment() -> dict[str, Any]:
    """Versions, device and commit, for the record of a run or a benchmark."""
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = None
    devices = jax.devices()
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "device": devices[0].device_kind,
        "devices": len(devices),
        "processes": jax.process_count(),
        "packages": versions,
        "git": git_state(),
    }
