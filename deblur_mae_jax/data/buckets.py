"""Object stores, such as gs://bucket/run: files at addresses, and copies of them on this machine.

Everything at an address is listed, opened and removed through `etils.epath`. Files that are read several times,
appended to, or opened by other libraries are copied to this machine first.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from deblur_mae_jax.errors import ADDRESS, StoreError, UserError, one_line

# The package that fsspec needs for each kind of address.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs"}
EXTRA = "pip install '.[cloud]' in the repository"
COPIES = "~/.cache/deblur_mae_jax/buckets"
CHUNK = 1 << 22
# Ends of the names of weight files, and of the lists of their parts.
WEIGHTS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".index.json")


def is_address(path: object) -> bool:
    """Whether a path is an address, such as gs://bucket/run."""
    return ADDRESS.match(str(path)) is not None


def text_of(path: object) -> str:
    """An address with its two slashes, one of which `pathlib` removes."""
    return re.sub(r":/+", "://", str(path), count=1).rstrip("/")


@functools.cache
def _epath() -> Any:
    # TensorFlow, where it is installed, would take over; it reads no s3:// without further packages.
    os.environ.setdefault("EPATH_USE_TF", "false")
    # The other way to reach a bucket asks for its type with credentials of its own.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    import fsspec
    from etils import epath

    # Files that other processes, or TensorStore, write must be seen.
    for name in ("gs", "gcs", "s3"):
        fsspec.config.conf.setdefault(name, {}).setdefault("use_listings_cache", False)
    return epath


def at(address: object, field: str) -> Any:
    """The `epath.Path` of an address.

    field: the flag or field that names it.
    Raises `UserError` for a kind of address that is not known, or whose package is not installed.
    """
    text = text_of(address)
    kind = text.split(":", 1)[0].lower()
    if kind not in PACKAGES:
        known = ", ".join(f"{name}://" for name in PACKAGES)
        raise UserError(
            f"{field}: '{text}' is an address of the kind {kind}://, which cannot be read. Choices: {known}, or the "
            "folder of a mount"
        )
    if importlib.util.find_spec(PACKAGES[kind]) is None:
        raise UserError(f"{field}: {kind}:// needs {PACKAGES[kind]}, which is not installed: {EXTRA}")
    return _epath().Path(kind + text[len(kind) :])


def folder_of(path: object) -> str:
    """The folder of a run at an address, of which a file such as config.json or weights.safetensors may be named."""
    text = text_of(path)
    head, _, name = text.rpartition("/")
    return head if name == "config.json" or name.endswith(WEIGHTS) else text


@contextlib.contextmanager
def reaching(field: str, address: object, what: str) -> Iterator[None]:
    """Turn what a store raises into a `UserError` that names the field, the address and `what` cannot be done.

    It is a `StoreError` unless the store refuses the account, or lacks what was asked for.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # stores, and the packages that reach them, raise errors of many kinds
        kind = UserError if _is_final(error) else StoreError
        raise kind(f"{field}: '{address}' cannot be {what}: {one_line(error)}") from error


def _is_final(error: BaseException) -> bool:
    """Whether the same request would fail again: no such file or bucket, no permission, or no space here."""
    if isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)):
        return True
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # the disk of this machine is full
        return True
    return re.search(r"\b(401|403|404)\b|forbidden|access ?denied|unauthorized|no ?such", str(error), re.I) is not None


def place(address: object, kind: str) -> Path:
    """The folder on this machine for copies from an address.

    kind: "runs", "sets" or, in `scratch`, "read".
    """
    text = text_of(address)
    name = re.sub(r"[^\w.-]+", "_", text.rsplit("/", 1)[-1])[:40]
    return Path(COPIES).expanduser() / kind / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def scratch(address: object) -> Path:
    """A new folder on this machine for copies from an address, which is removed when the process ends."""
    parent = place(address, "read")
    parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def files(folder: Any, enter: Callable[[str], bool] = lambda name: True) -> dict[str, Any]:
    """Every file below a folder or an address, by its relative path.

    enter: whether a folder, by its relative path, is entered.
    """
    out: dict[str, Any] = {}
    pending = [(folder, "")]
    while pending:
        place, name = pending.pop()
        for path in place.iterdir():
            if _is_marker(place, path):
                continue
            inner = f"{name}/{path.name}" if name else path.name
            if not path.is_dir():
                out[inner] = path
            elif enter(inner):
                pending.append((path, inner))
    return dict(sorted(out.items()))


def _is_marker(folder: Any, path: Any) -> bool:
    """Whether an entry is the empty object `folder/`, by which consoles of stores show a folder that was made there."""
    if isinstance(folder, Path):
        return False
    return path == folder or (path.name == folder.name and not path.exists())


def size(path: Any) -> int:
    """The number of bytes of a file here or at an address."""
    found = path.stat()
    return int(found.st_size if isinstance(path, Path) else found.length)


def copy(source: Any, target: Any) -> None:
    """Copy one file to this machine, where it appears when it is complete, or to an address."""
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp") if isinstance(target, Path) else target
    if isinstance(target, Path):
        target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with source.open("rb") as reading:
            _write(reading, draft)
        if draft is not target:
            os.replace(draft, target)
    finally:
        if draft is not target:
            draft.unlink(missing_ok=True)


def _write(reading: Any, target: Any) -> None:
    """Write a file. At an address, nothing is stored if that is interrupted."""
    writing = target.open("wb")
    try:
        shutil.copyfileobj(reading, writing, CHUNK)
    except BaseException:
        if not isinstance(target, Path):
            with contextlib.suppress(Exception):
                writing.discard()
            with contextlib.suppress(AttributeError):
                writing.closed = True  # closing it would store what was written so far
        else:
            writing.close()
        raise
    writing.close()


def copy_tree(source: Any, target: Any, last: tuple[str, ...] = ()) -> None:
    """Copy every file below a folder to another place.

    last: names of files that mark the copy as complete; they are copied after all others.
    """
    found = files(source)
    for name in sorted(found, key=lambda name: (name in last, name)):
        copy(found[name], target / name)


def remove(path: Any) -> None:
    """Remove a folder here or at an address, if it is there."""
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.rmtree()


class Output:
    """Where results are written: a path, or an address to which they are copied when they are complete.

    given: what the user named, or the default.
    field: the flag that names it.
    """

    def __init__(self, given: object, field: str):
        self.remote = at(given, field) if is_address(given) else None
        self.field = field
        self.path = Path(str(given)).expanduser() if self.remote is None else scratch(given) / self.remote.name

    def send(self, *paths: Path) -> None:
        """Copy files or folders, `path` without any, to the address. Raises `UserError` if that fails."""
        if self.remote is None:
            return
        for path in paths or (self.path,):
            target = self._there(path)
            with reaching(self.field, target, "written"):
                copy_tree(path, target) if path.is_dir() else copy(path, target)

    def _there(self, path: Path) -> Any:
        """The address of the result, of a file in it, or of a file beside it."""
        assert self.remote is not None
        if path.is_relative_to(self.path):
            inner = path.relative_to(self.path).as_posix()
            return self.remote if inner == "." else self.remote / inner
        return self.remote.parent / path.relative_to(self.path.parent).as_posix()

    def shown(self, path: Path) -> str:
        """The place of a result, for the user."""
        return str(path if self.remote is None else self._there(path))
