"""Images in WebDataset tars, in which the files of a sample differ in their extensions. Pack a set to train on it."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.data import layout, listing, naming, spelling
from deblur_mae_jax.data.decode import EXTENSIONS, Decoder
from deblur_mae_jax.data.image_files import decoder_of, stamp_of
from deblur_mae_jax.data.source import Skipped, Source
from deblur_mae_jax.data.table import COLUMNS, normal
from deblur_mae_jax.errors import UserError

AXES = 2  # of its images
READS = ("group_pattern",)  # fields of config.data that say what the images are
# Where samples keep their class and patient: text files, or entries of a JSON file.
LABELS = (".cls", ".label", ".txt")
LONGEST_LABEL = 60  # characters; a longer text is a description, not a class
KEYS = {"label": ("cls", *COLUMNS["label"]), "group": COLUMNS["group"], "split": COLUMNS["split"]}
SEVERAL = "a sample with several images ({}): which of them is meant is not clear"
DOTS = "its name has several dots, and WebDataset takes all after the first one as the kind of the file"

COMPRESSED = re.compile(r"\.(tar\.(gz|bz2|xz|zst|lz4)|tgz|tbz2?|txz)$", re.I)
PACKED_TAR = "a compressed tar, in which no single image can be read: decompress it"


@dataclasses.dataclass(frozen=True)
class Members:
    """Read members of tars by their place.

    places: (tar, offset, size) of each image.
    """

    places: list[tuple[str, int, int]]
    decoder: Decoder

    def content(self, index: int) -> bytes:
        """The bytes of one image."""
        path, offset, size = self.places[index]
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)

    def read(self, index: int) -> np.ndarray:
        """uint8 `(H, W, C)`."""
        return self.decoder(self.content(index))

    def examine(self, index: int) -> tuple[np.ndarray, list[str]]:
        """`read`, and the assumptions that were made."""
        return self.decoder.decode(self.content(index))

    def header(self, index: int) -> tuple[int, int]:
        """(H, W)."""
        return self.decoder.header(self.content(index))

    def stamp(self, index: int) -> Any:
        """Size and time of the tar, and the place in it."""
        path, offset, size = self.places[index]
        return [size, offset, stamp_of(path)]


def source(data, channels: int) -> Source:
    """The images of the tar, or of all tars in the folder, `data.root`. Compressed tars are left out, with a reason."""
    root = listing.existing_root(data.root)
    files = [] if root.is_file() else listing.walk(root).files
    tars = [root] if root.is_file() else [Path(f.path) for f in files if f.base.endswith(".tar")]
    skipped = [Skipped(f.name, PACKED_TAR) for f in files if COMPRESSED.search(f.base)]
    if not tars:
        raise UserError(f"config.data.root: no .tar in '{root}'" + (f"; {PACKED_TAR}" if skipped else ""))
    samples: dict[str, dict[str, Any]] = {}
    for tar in tars:
        where = _where(tar, root)
        _read_tar(tar, where, samples, skipped)
    named = {where: naming.split_of_shard(where) for where in (_where(tar, root) for tar in tars)}
    for sample in samples.values():
        sample.setdefault("split", named[sample["tar"]])
    for name, sample in sorted(samples.items()):
        if len(sample.get("images", ())) > 1:
            reason = SEVERAL.format(", ".join(suffix for suffix, _ in sample["images"]))
            skipped.append(Skipped(name, reason, damaged=True))
    kept = [(name, sample) for name, sample in sorted(samples.items()) if len(sample.get("images", ())) == 1]
    splits = [naming.split_name(sample.get("split", "")) for _, sample in kept]
    notes: list[str] = []
    known: dict[str, list[str] | None] = {}
    for field in ("label", "group"):
        values = spelling.known(field, [sample.get(field, "") for _, sample in kept], notes)
        for (_, sample), value in zip(kept, values, strict=True):
            sample[field] = value
    chosen, unused = naming.choose_splits(splits, data.split, f"'{root}'")
    kept, splits = [kept[i] for i in chosen], [splits[i] for i in chosen]
    reader = Members([sample["images"][0][1] for _, sample in kept], decoder_of(data, channels))
    for field in ("label", "group"):
        values = [sample[field] for _, sample in kept]
        known[field] = values if any(values) else None
    known["group"] = layout.groups_of_names([name for name, _ in kept], known["group"], data.group_pattern, notes)
    return Source(
        [name for name, _ in kept], reader.read, reader.header, reader.stamp, labels=known["label"],
        groups=known["group"], skipped=skipped, examine=reader.examine, notes=notes,
        splits=splits if any(splits) else None, unused=unused,
    )  # fmt: skip


def _where(tar: Path, root: Path) -> str:
    """The place of a tar, as the start of the names of its samples."""
    return tar.stem if tar == root else tar.relative_to(root).with_suffix("").as_posix()


def _read_tar(path: Path, where: str, samples: dict[str, dict[str, Any]], skipped: list[Skipped]) -> None:
    """Add the samples of one tar. Files that are equal may be stored once, and linked."""
    files: dict[str, tarfile.TarInfo] = {}
    links: list[tarfile.TarInfo] = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                if member.isfile():
                    files[os.path.normpath(member.name)] = member
                    _add(path, where, tar, member, samples, skipped)
                elif member.islnk() or member.issym():
                    links.append(member)
            for link in links:
                folder = os.path.dirname(link.name) if link.issym() else ""
                target = files.get(os.path.normpath(os.path.join(folder, link.linkname)))
                if target is None:
                    skipped.append(
                        Skipped(f"{path.name}:{listing.printable(link.name)}", "a link to no file of the tar")
                    )
                    continue
                same = copy.copy(target)
                same.name = link.name
                _add(path, where, tar, same, samples, skipped)
    except (tarfile.TarError, OSError, EOFError) as error:
        skipped.append(Skipped(path.name, f"not a plain tar, or damaged: {str(error)[:100]}", damaged=True))


def _add(path: Path, where: str, tar: tarfile.TarFile, member: tarfile.TarInfo, samples: dict, skipped: list) -> None:
    name = listing.printable(member.name.removeprefix("./"))
    folder, _, base = name.rpartition("/")
    stem, dot, suffix = base.partition(".")
    suffix = f"{dot}{suffix}".lower()
    key = f"{where}/{folder}/{stem}" if folder else f"{where}/{stem}"
    sample = samples.setdefault(key, {"tar": where})
    if suffix in EXTENSIONS:
        sample.setdefault("images", []).append((suffix, (str(path), member.offset_data, member.size)))
        return
    if suffix not in (*LABELS, ".json") or member.size > 1_000_000:
        dotted = Path(base).suffix.lower() in EXTENSIONS
        skipped.append(Skipped(f"{path.name}:{name}", DOTS if dotted else "neither an image nor a label"))
        return
    content = tar.extractfile(member)
    text = (content.read() if content is not None else b"").decode("utf-8", "replace").strip()
    if suffix != ".json":
        if len(text) > LONGEST_LABEL or "\n" in text:
            skipped.append(Skipped(f"{path.name}:{name}", "a text that is too long for the name of a class"))
        else:
            sample.setdefault("label", text)
        return
    try:
        values = json.loads(text)
    except ValueError:
        skipped.append(Skipped(f"{path.name}:{name}", "not readable JSON"))
        return
    by_name = {normal(str(n)): value for n, value in values.items()} if isinstance(values, dict) else {}
    for field, names in KEYS.items():
        found = next((by_name[n] for n in names if by_name.get(n) is not None), None)
        if found is not None:
            sample[field] = str(found)
