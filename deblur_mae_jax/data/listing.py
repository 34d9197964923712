"""List the files below a folder: linked folders once, hidden files never, names that any program can write."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from urllib.parse import quote

from deblur_mae_jax.data import naming
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


def is_system(name: str) -> bool:
    """Whether a file or folder is hidden, or one that operating systems and disk stations leave behind."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


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
    entered once, through its real place if that is below `root`. A file that is linked from another folder below
    `root` has the place of the link if all files of its own folder are linked, or if the link is in a split folder:
    such links divide a pool of images into splits or classes. Raises `UserError` if a file has several such links.
    """
    out = Listing([], [], [], 0)
    seen: set[tuple[int, int]] = set()
    held: set[str] = set()
    inodes: dict[tuple[int, int], File] = {}
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
            if is_system(entry.name):
                continue
            inner = f"{name}/{printable(entry.name)}" if name else printable(entry.name)
            try:
                if entry.is_dir():
                    (linked if entry.is_symlink() else pending).append((entry.path, inner))
                    continue
                held.update(_ancestors(inner))
                if not entry.is_file():
                    what = "a link to nothing" if entry.is_symlink() else "no regular file"
                    out.skipped.append(Skipped(inner, what))
                elif entry.is_symlink():
                    links.append((File(entry.path, inner), os.stat(entry.path)))
                else:
                    file = inodes[stat.st_dev, entry.inode()] = File(entry.path, inner)
                    out.files.append(file)
            except OSError as error:  # a link to itself, or into a folder that may not be entered
                held.update(_ancestors(inner))
                out.skipped.append(Skipped(inner, f"cannot be reached: {error.strerror or error}"))
    _add_links(out, links, inodes)
    out.files.sort(key=lambda f: f.name)
    out.empty = sorted(name for name in every if name not in held)
    return out


def _add_links(out: Listing, links: list[tuple[File, os.stat_result]], inodes: dict[tuple[int, int], File]) -> None:
    """Decide for every file that links name whether it is read in its own place or in that of a link."""
    targets: dict[tuple[int, int], list[File]] = {}
    for file, stat in links:
        targets.setdefault((stat.st_dev, stat.st_ino), []).append(file)
    elsewhere = {
        key: [file for file in files if file.folders != inodes[key].folders]
        for key, files in targets.items() if key in inodes
    }  # fmt: skip
    linked = {inodes[key].name for key, files in elsewhere.items() if files}
    kept_folders = {tuple(file.folders) for file in out.files if file.name not in linked}
    moved: set[str] = set()
    for key, files in targets.items():
        real, others = inodes.get(key), elsewhere.get(key, [])
        chosen = None
        if real is None:
            chosen = files[0]
            if not any(naming.of_folder(folder).role == "mask" for file in files for folder in file.folders):
                _refuse_several(File(os.path.realpath(chosen.path), os.path.basename(chosen.path)), files)
        elif others and (
            tuple(real.folders) not in kept_folders or (any(map(_in_split, others)) and not _in_split(real))
        ):
            chosen = others[0]
            _refuse_several(real, others)
            moved.add(real.name)
            out.skipped.append(Skipped(real.name, f"read through a link to it, '{chosen.name}'"))
        if chosen is not None:
            out.files.append(chosen)
        out.skipped += [Skipped(f.name, "a link to a file that is read elsewhere") for f in files if f is not chosen]
    out.files = [file for file in out.files if file.name not in moved]


def _refuse_several(real: File, links: list[File]) -> None:
    """Raise `UserError` if a file is linked from several folders, which may be several classes or splits."""
    other = next((link for link in links if link.folders != links[0].folders), None)
    if other is not None:
        raise UserError(
            f"config.data.root: '{links[0].name}' and '{other.name}' are links to the same file '{real.name}', whose "
            "class or split is therefore not clear; name the images in a CSV (config.data.name=manifest)"
        )


def _in_split(file: File) -> bool:
    return any(naming.of_folder(folder).split for folder in file.folders)


def _ancestors(name: str) -> list[str]:
    parts = name.split("/")[:-1]
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]
