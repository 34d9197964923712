"""List the files below a folder: linked folders once, hidden files never, names that any program can write."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from urllib.parse import quote

from deblur_mae_jax.data.source import Skipped
from deblur_mae_jax.errors import UserError, local_path

# Folders and files that operating systems and disk stations leave behind.
SYSTEM_NAMES = {"__macosx", "@eadir", "$recycle.bin", "lost+found", "system volume information", "thumbs.db",
                "desktop.ini"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class File:
    """A file that was found.

    path: its path, as the operating system knows it.
    name: its path relative to the root, with "/", in characters that can be written to any file.
    """

    path: str
    name: str

    @property
    def folders(self) -> list[str]:
        """The folders of `name`, outermost first."""
        return self.name.split("/")[:-1]

    @property
    def base(self) -> str:
        """The name of the file itself."""
        return self.name.rsplit("/", 1)[-1]


@dataclasses.dataclass
class Listing:
    """The files below a folder.

    files: sorted by name.
    skipped: what could not be entered, with the reason.
    empty: folders that hold no file, at any depth.
    links: number of linked folders that were entered.
    """

    files: list[File]
    skipped: list[Skipped]
    empty: list[str]
    links: int


def printable(name: str) -> str:
    """A file name in characters that can be written as UTF-8. Bytes that are not UTF-8 become %F6 and the like."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return "".join(c if not 0xDC80 <= ord(c) <= 0xDCFF else quote(bytes([ord(c) - 0xDC00])) for c in name)
    return name


def existing_root(root: str, field: str = "config.data.root") -> Path:
    """Convert `root` to a path. Raises `UserError` if it does not exist."""
    if not root:
        raise UserError(f"{field} is not set: give the images with --{field}=/path/to/images")
    try:
        path = local_path(root, field)
        exists = path.exists()
    except (OSError, ValueError, RuntimeError) as error:  # also an unknown user in "~user"
        raise UserError(f"{field}: '{printable(str(root))[:200]}' is not a path: {error}") from error
    if not exists:
        raise UserError(f"{field}: '{root}' does not exist")
    return path


def walk(root: Path) -> Listing:
    """List every file below `root`.

    Hidden files and folders are left out. Links to folders are followed; a folder that can be reached in two ways is
    entered once, through its real place if that is below `root`.
    """
    out = Listing([], [], [], 0)
    seen: set[tuple[int, int]] = set()
    held: set[str] = set()
    inodes: set[tuple[int, int]] = set()
    links: list[tuple[File, os.stat_result]] = []
    # Real folders are entered before any link, so that a linked folder below `root` keeps its own name.
    pending, linked = [(str(root), "")], list[tuple[str, str]]()
    every: list[str] = []
    while pending or linked:
        is_link = not pending
        folder, name = pending.pop() if pending else linked.pop(0)
        try:
            stat = os.stat(folder)
            entries = sorted(os.scandir(folder), key=lambda e: e.name)
        except OSError as error:
            out.skipped.append(Skipped(name, f"the folder cannot be opened: {error.strerror or error}"))
            continue
        if (stat.st_dev, stat.st_ino) in seen:
            out.skipped.append(Skipped(name, "a link to a folder that is read elsewhere"))
            continue
        seen.add((stat.st_dev, stat.st_ino))
        out.links += is_link
        if name:
            every.append(name)
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in SYSTEM_NAMES:
                continue
            inner = f"{name}/{printable(entry.name)}" if name else printable(entry.name)
            if entry.is_dir():
                (linked if entry.is_symlink() else pending).append((entry.path, inner))
            elif entry.is_file():
                if entry.is_symlink():
                    links.append((File(entry.path, inner), os.stat(entry.path)))
                    held.update(_ancestors(inner))
                    continue
                inodes.add((stat.st_dev, entry.inode()))
                out.files.append(File(entry.path, inner))
                held.update(_ancestors(inner))
            else:
                what = "a link to nothing" if entry.is_symlink() else "no regular file"
                out.skipped.append(Skipped(inner, what))
                held.update(_ancestors(inner))
    for file, target in links:
        if (target.st_dev, target.st_ino) in inodes:
            out.skipped.append(Skipped(file.name, "a link to a file that is read elsewhere"))
        else:
            inodes.add((target.st_dev, target.st_ino))
            out.files.append(file)
    out.files.sort(key=lambda f: f.name)
    out.empty = sorted(name for name in every if name not in held)
    return out


def _ancestors(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]
