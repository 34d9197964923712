"""The folder of a run: the names of its files, its config, and the record of its environment."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from deblur_mae_jax import sharding
from deblur_mae_jax.config import flat, upgrade
from deblur_mae_jax.data import buckets
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.workdir import mirror

# The file that completes a checkpoint whose folder cannot appear at once.
COMMITTED = "commit_success.txt"
# How long the other processes wait until they see what process 0 has written, seconds.
SHARED = 60.0
# Prefix of the folders of the best weights; the step follows it.
BEST = "best"

# Fields that may change between two starts in the same workdir. They affect what is written or where it
# is stored, but never a result (attention may change the rounding).
FREE = (
    "checkpoint.",
    "sharding.",
    "report.num_",
    "report.eval_split",
    "report.monitor_",
    "report.audit",
    "log.",
    "data.root",
    "data.store",
    "data.num_threads",
    "data.num_workers",
    "data.max_bad_fraction",
    "compilation_cache",
    "hang_minutes",
    "init_from",  # a started run has its own weights, and a copy of the network it started from
    "search.cache",
    "search.batch_size",
    "infer.batch_size",
    "model.attention",
)
# Fields that set the length of a run.
LENGTH = ("optim.steps", "optim.epochs")
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


class Workdir:
    """The folder of a run, and the names of everything in it.

    path: a path of this machine; for a run at an address such as gs://bucket/run, where its files are written before
        they are copied there (`mirror.py`).
    arrays: where checkpoints and weights are.
    """

    def __init__(self, path: str | Path):
        self.mirror = mirror.Mirror(path) if buckets.is_address(path) else None
        self.path = Path(path).expanduser() if self.mirror is None else self.mirror.local
        # Where Orbax writes.
        self.arrays: Any = self.mirror.remote if self.mirror is not None and self.mirror.by_orbax else self.path
        # Config, versions, cost, sizes of the parameters, data set, files that were left out, and how it ended.
        self.config = self.path / "config.json"
        self.environment = self.path / "environment.json"
        self.cost = self.path / "cost.json"
        self.parameters = self.path / "parameters.txt"
        self.dataset = self.path / "dataset.json"
        self.skipped = self.path / "skipped.csv"
        self.result = self.path / "result.json"
        # Where the time of every start went.
        self.time = self.path / "time.json"
        # Held by the process that works in the folder, and who that is.
        self.lock = self.path / ".lock"
        self.owner = self.path / "lock.json"
        # Training: metrics by step, states, and the network it started from.
        self.metrics = self.path / "metrics.jsonl"
        self.tensorboard = self.path / "tensorboard"
        self.checkpoints = self.arrays / "checkpoints"
        self.profile = self.path / "profile"
        self.pretrained = self.path / "pretrained"
        self.pretrained_weights = self.pretrained / "weights.safetensors"
        self.pretrained_images = self.pretrained / "image_hashes.json"
        # Evaluation: a row per image, measures, copies across splits, blur levels, label maps, the page.
        self.predictions = self.path / "predictions.csv"
        self.measures = self.path / "metrics.json"
        self.leakage = self.path / "leakage.csv"
        self.blur_search = self.path / "blur_search.csv"
        self.segmentations = self.path / "segmentations"
        self.report = self.path / "report"
        self.page = self.report / "index.html"

    @property
    def name(self) -> str:
        """Name of the folder itself."""
        return self.path.resolve().name if self.mirror is None else str(self.mirror.remote.name)

    @property
    def taken_over(self) -> bool:
        """Whether another machine has taken over the address of the run. All processes must ask together."""
        return self.mirror is not None and bool(sharding.on_any_process(self.mirror.lost))

    def send(self) -> bool:
        """For a workdir at an address: copy what has changed there. Returns whether nothing is left to copy."""
        return self.mirror is None or self.mirror.push()

    def shown(self, path: Path | None = None) -> str:
        """The place of a file of this folder, or of the folder itself, for the user."""
        path = self.path if path is None else path
        if self.mirror is None or not path.is_relative_to(self.path):
            return str(path)
        return str(self.mirror.remote / path.relative_to(self.path).as_posix())

    def index(self, split: str | None = None) -> Path:
        """File of the pre-flight index of the images, or of the images of another split."""
        return self.path / ("index.json" if split is None else f"index_{split}.json")

    def best(self, step: int) -> Path:
        """Folder of the best weights by validation score, saved at this step."""
        return self.arrays / f"{BEST}_{step}"

    def failure(self, step: int) -> Path:
        """Folder with everything needed to replay a step whose loss was not finite."""
        return self.arrays / "failures" / f"step_{step}"

    def make_report(self) -> Path:
        """Return `report`, and create it if needed."""
        self.report.mkdir(parents=True, exist_ok=True)
        return self.report

    def is_committed(self, folder: Any) -> bool:
        """Whether a checkpoint is complete. In a bucket, and with `config.checkpoint.commit=file`, its folder may be
        there before."""
        try:
            by_file = json.loads(self.config.read_text()).get("checkpoint.commit") == "file"
        except (OSError, ValueError):
            by_file = False
        return not (by_file or not isinstance(folder, Path)) or (folder / COMMITTED).exists()

    def has_checkpoint(self) -> bool:
        """Whether the folder contains a complete checkpoint, from which the run goes on."""
        steps = (path for path in self.checkpoints.glob("step_*") if path.name.rsplit("_", 1)[1].isdigit())
        return any(self.is_committed(path) for path in steps)

    def is_started(self) -> bool:
        """Whether the folder contains anything from a run that a new one must not overwrite."""
        # A save that was killed leaves a folder such as step_4.orbax-checkpoint-tmp, which is no checkpoint.
        saved = [*self.checkpoints.glob("step_*"), *self.arrays.glob(f"{BEST}_*")]
        tables = (self.predictions, self.blur_search)
        return any(p.name.rsplit("_", 1)[1].isdigit() for p in saved) or any(table.exists() for table in tables)


def write_json(path: Any, value: Any) -> None:
    """Write JSON atomically, to a path or an address."""
    if not isinstance(path, Path):
        path.write_text(json.dumps(value, indent=2, default=str) + "\n")
        return
    draft = path.with_name(path.name + ".tmp")
    draft.write_text(json.dumps(value, indent=2, default=str) + "\n")
    os.replace(draft, path)


@contextlib.contextmanager
def writing(workdir: Workdir) -> Iterator[None]:
    """Raise `UserError` if the folder cannot be written, as on a full disk."""
    try:
        yield
    except OSError as error:
        raise UserError(f"--workdir: cannot write to '{workdir.path}': {error.strerror or error}") from error


def claim(workdir: Workdir, config: ConfigDict) -> None:
    """Claim `workdir` for this config, or refuse it if it belongs to another run.

    A run that failed before its first checkpoint does not block the folder.

    Raises `UserError` that shows the differences.
    """
    try:
        workdir.path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--workdir: cannot use '{workdir.path}': {error.strerror}") from error
    path = workdir.config
    new = json.loads(json.dumps(flat(config), default=str))
    if path.exists() and workdir.is_started():
        try:
            old = upgrade(json.loads(path.read_text()))
        except ValueError as error:
            raise UserError(f"--workdir: '{path}' is not readable JSON: {error}") from error
        selects = any(key.startswith("select.") for key in new)
        free = FREE if selects else (*FREE, "report.")  # evaluations choose the weights of a run with labels
        differ = sorted(
            key for key in old.keys() | new.keys() if old.get(key) != new.get(key) and not key.startswith(free)
        )
        if differ:
            shown = lambda value: "empty" if value == "" else str(value)
            lines = "; ".join(f"config.{k}: {shown(old.get(k))} there, {shown(new.get(k))} now" for k in differ)
            longer = set(differ) <= set(LENGTH)
            more = (
                f". The learning rate of a run follows from its length, so a run cannot be made longer; to go on from "
                f"its weights, use a new workdir with --config.init_from={workdir.shown()}"
            )
            raise UserError(
                f"--workdir: '{workdir.shown()}' belongs to a run with another config ({lines}). "
                f"Use another workdir, or the same config to resume that run{more if longer else ''}"
            )
    if path.exists() and not workdir.is_started() and _is_of_another(path):
        raise UserError(
            f"--workdir: '{workdir.shown()}' holds a config.json that no run has written, such as that of a downloaded "
            "model; name another folder"
        )
    if jax.process_index() == 0:
        with writing(workdir):
            write_json(path, new)
    elif workdir.mirror is None:
        _wait_for(path, new)


def forget_later_sheets(workdir: Workdir, step: int) -> None:
    """Delete the sheets of steps after `step`, from which the run goes on: an earlier start has drawn them.

    A run that starts with step 0 draws that of step 0 again too.
    """
    for path in workdir.report.glob("reconstructions_*.png"):
        number = path.stem.rpartition("_")[2]
        if not step or (number.isdigit() and int(number) > step):
            path.unlink(missing_ok=True)


def _wait_for(path: Path, content: Any) -> None:
    """Wait until this process sees what process 0 has written. Raises `UserError` if it never does.

    Without a folder that all of them share, the first checkpoint would wait for ever.
    """
    end = time.monotonic() + SHARED
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError):
            if json.loads(path.read_text()) == content:
                return
        time.sleep(0.5)
    raise UserError(
        f"--workdir: process {jax.process_index()} does not see what process 0 writes into '{path.parent}': all "
        "processes need the same folder, on a drive that they share"
    )


def _is_of_another(path: Path) -> bool:
    """Whether a `config.json` is that of another program."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):  # of a start that was killed
        return False
    return isinstance(values, dict) and bool(values) and "task.name" not in values


def check_data(workdir: Workdir, fingerprint: str, num_images: int, earlier: str = "") -> None:
    """Refuse to resume in `workdir` with images that differ from those of the first start.

    earlier: the fingerprint that version 0.1 gave the same images.
    """
    if workdir.dataset.exists() and workdir.is_started():
        before = json.loads(workdir.dataset.read_text())
        if before["fingerprint"] not in (fingerprint, earlier):
            raise UserError(
                f"config.data.root: the images are not those this run started with "
                f"({before['num_images']} images, fingerprint {before['fingerprint']}, in "
                f"'{workdir.shown()}'; now {num_images}, {fingerprint}). Use another workdir"
            )


def git_state() -> dict[str, Any]:
    """Commit of the code, and whether it has local changes; empty outside a repository."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    if commit is None:
        return {}
    # Output that a benchmark has just written does not count as a change of the code.
    changed = git("status", "--porcelain", "--", ":(top)", ":(top,exclude)benchmarks/results")
    return {"commit": commit, "modified": bool(changed)}


def record_environment(workdir: Workdir) -> None:
    """Write `environment.json`, and say if an earlier start of the run had other versions, devices or code.

    Those are kept under `earlier`.
    """
    now, earlier = environment(), list[dict[str, Any]]()
    if workdir.environment.exists():
        try:
            before = json.loads(workdir.environment.read_text())
            earlier = list(before.pop("earlier", []))
        except (ValueError, AttributeError, TypeError):  # damaged
            before = now
        if before != now:
            earlier.append(before)
            parts = ["device", "devices", "processes", "python"]
            parts += ["processor"] if now["device"] == "cpu" else []
            packages = before.get("packages", {})
            pairs = [(name, packages.get(name), version) for name, version in now["packages"].items()]
            pairs += [(name, before.get(name, now[name]), now[name]) for name in parts]
            changed = [f"{name} {was} before, {value} now" for name, was, value in pairs if was != value]
            changed += ["other code"] if before.get("git", now["git"]) != now["git"] else []
            if changed:
                print(
                    f"note: this run goes on with {'; '.join(changed)}. Results may differ by rounding", file=sys.stderr
                )
    write_json(workdir.environment, now | ({"earlier": earlier} if earlier else {}))


def environment() -> dict[str, Any]:
    """Return versions, device, processor and commit, for the record of a run or a benchmark."""
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
        "processor": processor(),
        "processes": jax.process_count(),
        "packages": versions,
        "git": git_state(),
    }


def processor() -> str:
    """The processor, the number of its cores that this process may use, and its widest vector instructions.

    Processors of one name can differ: of two called "AMD EPYC", that of family 26 multiplies matrices twice as fast.
    """
    fields = dict[str, str]()
    with contextlib.suppress(OSError):  # only Linux has this file
        for line in Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines():
            name, _, value = line.partition(":")
            fields[name.strip()] = value.strip()
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields:
        name += f" (family {fields['cpu family']}, model {fields.get('model', 'unknown')})"
    flags = fields.get("flags", "").split()
    wide = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return ", ".join([name, f"{cores} cores", *wide])
