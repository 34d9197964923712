"""A workdir at an address, such as gs://bucket/run: its files are written on this machine and copied to the store.

At the start of a run the files of the store are copied here; after every evaluation, save and at the end, files that
have changed are copied there. Arrays at gs:// are written by Orbax itself. Orbax knows no s3://, so its checkpoints are
saved here and copied, with the file that marks a checkpoint as complete at last.
"""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import jax

from deblur_mae_jax.data import buckets
from deblur_mae_jax.data.privacy import KEY_FILE
from deblur_mae_jax.errors import UserError, one_line

FIELD = "--workdir"
# Folders with arrays, which are copied as wholes if they are copied at all.
ARRAYS = ("checkpoints", "best_", "failures")
# Folders that a run that goes on does not read.
OUTPUTS = ("tensorboard", "profile", "segmentations", "export", "inspection")
# Files that stay on this machine: locks, and the key of the names of DICOM images.
OWN = (".lock", "lock.json", KEY_FILE)
# Files that mark a checkpoint as complete; either is enough.
MARKS = ("checksums.json", "commit_success.txt")
UNSENT = ".unsent"


def _is_array(name: str) -> bool:
    return name.startswith(ARRAYS)


class Mirror:
    """The two places of a workdir.

    remote: its address, an `epath.Path`.
    local: the folder on this machine.
    by_orbax: whether Orbax writes its arrays to the address.
    """

    def __init__(self, address: object):
        self.remote = buckets.at(address, FIELD)
        self.by_orbax = str(self.remote).startswith("gs://")
        if not self.by_orbax and jax.process_count() > 1:
            raise UserError(
                f"{FIELD}: '{self.remote}': several processes cannot save to this kind of address together. Use gs://, "
                "a shared file system, or a mount of the bucket with config.checkpoint.commit=file"
            )
        process = jax.process_index()
        self.local = buckets.place(self.remote, "runs")
        if process:
            self.local = self.local.with_name(f"{self.local.name}-{process}")
        self._sent: dict[str, tuple[int, int]] = {}
        self._pulled = False
        # Another machine has taken the run over.
        self.lost = False

    def pull(self) -> None:
        """Make the local folder a copy of the store. Raises `UserError` if the store cannot be read."""
        if self.local.exists():
            kept = self._put_aside()
            for path in self.local.iterdir():
                if path.name not in OWN:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            if kept is not None:
                print(f"the files of an earlier start that were not copied to the store are in {kept}", flush=True)
        self.local.mkdir(parents=True, exist_ok=True)
        with buckets.reaching(FIELD, self.remote, "read"):
            if not self.remote.exists():
                self._pulled = True
                (self.local / UNSENT).touch()
                return
            found = buckets.files(self.remote, lambda name: not _is_array(name) and name not in OUTPUTS)
            for name, path in found.items():
                if name not in OWN:
                    buckets.copy(path, self.local / name)
            if not self.by_orbax:
                for folder in _complete(self.remote):
                    buckets.copy_tree(folder, self.local / folder.relative_to(self.remote).as_posix())
        self._sent = self._states() | self._array_states()
        self._pulled = True
        (self.local / UNSENT).touch()

    def _put_aside(self) -> Path | None:
        """Keep what an earlier start may not have copied to the store."""
        own = [path for path in self.local.iterdir() if path.name not in (*OWN, UNSENT)]
        if not own or not (self.local / UNSENT).exists():
            return None
        names = (self.local.with_name(f"{self.local.name}-unsent{number or ''}") for number in itertools.count())
        # An earlier one may hold the only copy of a checkpoint.
        kept = next(path for path in names if not path.exists())
        kept.mkdir()
        for path in own:
            path.rename(kept / path.name)
        return kept

    def _states(self) -> dict[str, tuple[int, int]]:
        """Size and time of change of every file that is copied by itself."""
        out = {}
        for name, path in buckets.files(self.local, lambda name: not _is_array(name)).items():
            if name not in (*OWN, UNSENT) and not name.endswith(".tmp"):
                stat = path.stat()
                out[name] = (stat.st_size, stat.st_mtime_ns)
        return out

    def _array_states(self) -> dict[str, tuple[int, int]]:
        """Size and time of change of the newest file of every complete checkpoint, best weights and failure here."""
        out = {}
        for folder in [] if self.by_orbax else _complete(self.local):
            newest = max((path.stat() for path in buckets.files(folder).values()), key=lambda stat: stat.st_mtime_ns)
            out[folder.relative_to(self.local).as_posix()] = (newest.st_size, newest.st_mtime_ns)
        return out

    def push(self) -> bool:
        """Copy what has changed to the store. On failure, say so and return false; the next call tries again."""
        if jax.process_index() != 0:
            return True
        if not self._pulled or self.lost:
            return False
        try:
            for name, state in self._array_states().items():
                if self._sent.get(name) != state:
                    _remove(self.remote / name)  # what an interrupted copy left
                    buckets.copy_tree(self.local / name, self.remote / name, last=MARKS)
                    if name.startswith("best_"):  # Orbax commits it by a name, which a store does not change at once
                        (self.remote / name / MARKS[1]).write_text("")
                    self._sent[name] = state
            for name, state in self._states().items():
                if self._sent.get(name) != state:
                    buckets.copy(self.local / name, self.remote / name)
                    self._sent[name] = state
            self._remove_old_arrays()
        except Exception as error:  # stores, and the packages that reach them, raise errors of many kinds
            where = f"they are in {self.local}, and the next save tries again"
            print(f"files could not be copied to {self.remote} ({one_line(error)}); {where}", flush=True)
            return False
        return True

    def finish(self) -> bool:
        """The last `push` of a start. Returns whether the store has everything."""
        done = self.push()
        if done and jax.process_index() == 0:
            (self.local / UNSENT).unlink(missing_ok=True)
        return done

    def _remove_old_arrays(self) -> None:
        """Remove checkpoints and weights from the store that are no longer in the local folder."""
        if self.by_orbax:
            return
        here = self._array_states()
        for name in [name for name in self._sent if _is_array(name) and name not in here]:
            _remove(self.remote / name)
            del self._sent[name]


def _remove(folder: Any) -> None:
    """Remove a checkpoint from the store; first what marks it as complete."""
    for mark in MARKS:
        if (folder / mark).exists():
            (folder / mark).unlink()
    buckets.remove(folder)


def _complete(root: Any) -> list[Any]:
    """The folders of complete checkpoints, best weights and failures of a run, here or at an address."""
    out = []
    for path in sorted(root.iterdir(), key=lambda path: path.name):
        if path.name in ("checkpoints", "failures"):
            inner = [one for one in path.iterdir() if one.name.rpartition("_")[2].isdigit()]
            out += [one for one in sorted(inner) if path.name == "failures" or _is_marked(one)]
        elif path.name.startswith("best_") and path.name.rpartition("_")[2].isdigit():
            out += [path] if isinstance(path, Path) or _is_marked(path) else []
    return out


def _is_marked(folder: Any) -> bool:
    return any((folder / mark).exists() for mark in MARKS)


def _with_companions(file: Any, local: Path) -> Path:
    """A copy of a weight file, of the descriptions beside it, of its parts, and of the network that searches for it."""
    parts = (".safetensors", ".bin") if file.name.endswith(".index.json") else ()
    for path in file.parent.iterdir():
        wanted = path.name == file.name or path.name.endswith((".json", *parts)) or path.name.startswith("searcher")
        if wanted and not path.is_dir():
            buckets.copy(path, local / path.name)
    return local / file.name


def opened(path: object, field: str) -> Path:
    """Where a run, or a file, can be read on this machine: its path, or a copy of what is at its address.

    Of a run, the files and the best or newest weights are copied, at each call. Raises `UserError` if an
    address cannot be read.
    """
    if not buckets.is_address(path):
        return Path(str(path)).expanduser()
    remote = buckets.at(path, field)
    if remote.name == "config.json":
        return opened(remote.parent, field) / remote.name
    local = buckets.scratch(remote)
    with buckets.reaching(field, remote, "read"):
        if not remote.exists():
            raise UserError(f"{field}: '{remote}' does not exist")
        if remote.name.endswith(buckets.WEIGHTS) and not remote.is_dir():
            return _with_companions(remote, local)
        for name, path in buckets.files(remote, lambda name: not _is_array(name) and name not in OUTPUTS).items():
            if name not in OWN:
                buckets.copy(path, local / name)
        found = _complete(remote)
        number = lambda path: int(path.name.rpartition("_")[2])
        best = sorted((p for p in found if p.name.startswith("best_")), key=number)[-1:]
        newest = sorted((p for p in found if p.parent.name == "checkpoints"), key=number)[-1:]
        for folder in [*best, *([] if best else newest)]:
            buckets.copy_tree(folder, local / folder.relative_to(remote).as_posix())
    return local
