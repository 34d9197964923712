"""Read a packed set (`scripts/pack_data.py`): images from ArrayRecord shards, everything else from its index."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.data import buckets, grid, layout, naming, records
from deblur_mae_jax.data.decode import Decoder
from deblur_mae_jax.data.image_files import decoder_of
from deblur_mae_jax.data.listing import existing_root
from deblur_mae_jax.data.packing import FACTS, INDEX, SKIPPED, VERSION
from deblur_mae_jax.data.shard_writer import file_hash
from deblur_mae_jax.data.source import BadImage, Checked, Source
from deblur_mae_jax.errors import StoreError, UserError, one_line

# Facts that a set always has.
NEEDED = ("axes", "block", "channels", "decoding", "index_sha256", "mask_names", "masks", "notes", "shards")
AXES = 2  # of its images; with a network for volumes, `packed_volumes.py` reads them
READS = ("group_pattern",)  # fields of config.data that say what the images are


_copying = threading.Lock()
REOPEN = 60.0  # seconds before readers that fail are opened once more
_opened = -REOPEN
RETRIES = (5.0, 20.0, 60.0)  # seconds to wait for a store that fails in the middle of a run


@functools.lru_cache(maxsize=512)
def _reader(path: str, origin: str, digest: str) -> Any:
    """One reader for each shard and process.

    origin: the address from which the shard is copied if it is not on this machine yet; "" for a set on this machine.
    digest: the hash of the shard, SHA-256.
    """
    from array_record.python import array_record_module

    if not origin:
        _require_same_packing(Path(path), digest)
    with _copying:  # a shard is copied once, however many threads wait for it
        if origin and not Path(path).exists():
            _copied_patiently(origin, Path(path), digest)
    return array_record_module.ArrayRecordReader(path, "readahead_buffer_size:0")


def _require_same_packing(path: Path, digest: str) -> None:
    """Raise `UserError` if the set was packed again since the run has read its index: records have other places now."""
    try:
        known = json.loads((path.parent / FACTS).read_text())["shards"].get(path.name)
    except FileNotFoundError:  # packing removes it first
        known = None if path.parent.exists() else digest
    if known != digest:
        raise UserError(
            f"config.data.root: '{path.parent}' was packed again while it was used; start the same command again"
        )


def _copied_patiently(origin: str, path: Path, digest: str) -> None:
    """Copy a shard, again after a while if the store fails. Raises `UserError`."""
    for wait in RETRIES:
        try:
            return _copy_shard(origin, path, digest)
        except StoreError:
            time.sleep(wait)
    _copy_shard(origin, path, digest)


def _copy_shard(origin: str, path: Path, digest: str) -> None:
    """Copy a shard from its address, and check it. Raises `UserError`."""
    field = "config.data.root"
    with buckets.reaching(field, origin, "copied to this machine"):
        draft = path.with_name(f"{path.name}.{os.getpid()}")
        buckets.copy(buckets.at(origin, field), draft)
        if file_hash(str(draft)) != digest:
            draft.unlink()
            raise UserError(f"{field}: '{origin}' is not the shard that {FACTS} was written for; pack the set again")
        os.replace(draft, path)


def _opened_anew() -> bool:
    """Close the readers, so that their files are opened again. False if they were a minute ago."""
    global _opened
    with _copying:
        if time.monotonic() - _opened < REOPEN:
            return False
        _opened = time.monotonic()
        _reader.cache_clear()
        return True


@dataclasses.dataclass(frozen=True)
class Records:
    """Read the records of a packed set.

    shards: path of every shard, with its address, if it has one, and its hash.
    shard, record: number of the shard of each image, and of its record there `(N,)`.
    decoder: decodes the bytes of image files.
    """

    shards: list[tuple[str, str, str]]
    shard: np.ndarray
    record: np.ndarray
    decoder: Decoder | None

    def parts(self, index: int) -> records.Parts:
        """The parts of a record. Raises `BadImage` if it is damaged."""
        return records.split(self.fetch(index, [0])[0])

    def fetch(self, index: int, numbers: list[int]) -> list[bytes]:
        """Records of an image, counted from its first. Raises `BadImage` if the shard is damaged."""
        place, first = self.shards[int(self.shard[index])], int(self.record[index])
        read = lambda: list(_reader(*place).read([first + number for number in numbers])) if numbers else []
        try:
            return read()
        except UserError:
            raise
        except Exception as error:  # the reader raises its own kinds for damage
            failure = error
        if _opened_anew():  # after an outage of a drive, an open file may stay unreadable
            try:
                return read()
            except UserError:
                raise
            except Exception as error:
                failure = error
        raise BadImage(
            f"shard '{Path(place[0]).name}' cannot be read ({one_line(failure, 80)}); if this stays so, pack the set "
            "again"
        ) from failure

    def read(self, index: int) -> np.ndarray:
        """uint8 `(H, W, C)`."""
        return self.examine(index)[0]

    def examine(self, index: int) -> tuple[np.ndarray, list[str]]:
        """`read`, and the assumptions that were made."""
        parts = self.parts(index)
        if parts.facts["encode"] == "file":
            assert self.decoder is not None
            return self.decoder.decode(parts.image)
        return records.decode_image(parts.image, parts.facts["encode"], tuple(parts.facts["shape"])), []

    def mask(self, index: int) -> np.ndarray:
        """The mask, uint8 `(H, W)`. Raises `BadImage`."""
        parts = self.parts(index)
        if not parts.mask:
            raise BadImage("it has no mask")
        return records.decompress(parts.mask, np.uint8, tuple(parts.facts["shape"][:-1]))


@dataclasses.dataclass
class PackedIndex:
    """The index of a packed set: its facts, and its rows of the wanted splits as columns.

    folder: where its files are on this machine.
    origin: the address of the set, "" for a set on this machine.
    """

    folder: Path
    origin: str
    facts: dict[str, Any]
    columns: dict[str, list]
    rows: np.ndarray
    unused: dict[str, int]

    @property
    def shards(self) -> list[tuple[str, str, str]]:
        """The paths of all shards, their addresses ("" for a set on this machine) and hashes."""
        origin = f"{self.origin}/" if self.origin else ""
        hashes = self.facts["shards"]
        return [(str(self.folder / name), origin and origin + name, hashes[name]) for name in sorted(hashes)]

    def list_of(self, column: str) -> list | None:
        """A column, or `None` if it is empty."""
        values = [self.columns[column][i] for i in self.rows]
        return values if any(values) else None

    @property
    def notes(self) -> list[str]:
        """What was assumed and left out when the set was packed."""
        count = self.facts.get("num_skipped", 0)
        left_out = [f"left out when the set was packed: {count} (see its {SKIPPED})"] if count else []
        return [*self.facts["notes"], *left_out]

    def checked(self) -> Checked:
        """What the pre-flight check would find."""
        c, rows = self.columns, self.rows
        masked = bool(self.facts["masks"])
        return Checked(
            np.array([c["size"][i] for i in rows], np.int32),
            [c["sha256"][i] for i in rows],
            [c["mask_hash"][i] for i in rows] if masked else None,
            [c["mask_values"][i] for i in rows] if masked else None,
            [c["edge_values"][i] for i in rows] if masked else None,
        )


def _on_this_machine(root: str) -> tuple[Path, str]:
    """The folder of a packed set, and its address.

    Of a set at an address, the index is copied here now, and each shard when one of its images is first read.
    """
    if not buckets.is_address(root):
        return existing_root(root), ""
    field = "config.data.root"
    remote = buckets.at(root, field)
    with buckets.reaching(field, remote, "read"):
        if not (remote / FACTS).exists():
            raise UserError(f"{field}: '{remote}' is not a packed set: it holds no {FACTS}")
        content = (remote / FACTS).read_text()
        # A set that was packed again has other shards under the same names.
        folder = buckets.place(remote, "sets") / hashlib.sha256(content.encode()).hexdigest()[:12]
        for name in (FACTS, INDEX):
            if not (folder / name).exists():
                buckets.copy(remote / name, folder / name)
    return folder, str(remote)


def _names(folder: Path, origin: str) -> set[str]:
    """The files of a packed set, here or at its address."""
    field = "config.data.root"
    with buckets.reaching(field, origin or folder, "read"):
        return {path.name for path in (buckets.at(origin, field) if origin else folder).iterdir()}


def _text(error: Exception) -> str:
    return str(error.args[0]) if isinstance(error, KeyError) else str(error)


def open_index(data, channels: int, axes: int) -> PackedIndex:
    """Read the index of a packed set. Raises `UserError` if it does not fit the config."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder, origin = _on_this_machine(str(data.root))
    try:
        facts = json.loads((folder / FACTS).read_text())
        version = facts["version"]
        lacking = [name for name in NEEDED if name not in facts]
        content = (folder / INDEX).read_bytes()
        if lacking:
            raise KeyError(f"{FACTS} lacks {', '.join(lacking)}")
        if hashlib.sha256(content).hexdigest() != facts["index_sha256"]:
            raise ValueError(f"{INDEX} is not the one that {FACTS} was written for; pack the set again")
        columns = pq.read_table(pa.BufferReader(content)).to_pydict()
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise UserError(f"config.data.root: '{folder}' is not a packed set, or damaged: {_text(error)}") from error
    if version != VERSION:
        raise UserError(f"config.data.root: '{folder}' was packed by version {version} of the format, not {VERSION}")
    _check_settings(data, channels, axes, facts, folder)
    strange = next((name for name in facts["shards"] if Path(name).name != name), None)
    if strange is not None:
        raise UserError(f"config.data.root: '{folder}' names the shard '{strange}', which is in another folder")
    held = _names(folder, origin)
    missing = [name for name in facts["shards"] if name not in held]
    if missing:
        raise UserError(f"config.data.root: '{folder}' lacks the shard '{missing[0]}' and {len(missing) - 1} more")
    if not origin:
        _refuse_other_sizes(folder, facts.get("bytes", {}))
    rows, unused = naming.choose_splits(columns["split"], data.split, f"'{folder}'")
    return PackedIndex(folder, origin, facts, columns, np.array(rows), unused)


def _refuse_other_sizes(folder: Path, sizes: dict[str, int]) -> None:
    """Raise `UserError` for a shard that is not as large as when it was packed."""
    for name, size in sizes.items():
        now = (folder / name).stat().st_size
        if now != size:
            raise UserError(
                f"config.data.root: the shard '{folder / name}' has {now} bytes instead of {size}: it was copied in "
                "part, or belongs to another packing. Copy or pack it again"
            )


def _check_settings(data, channels: int, axes: int, facts: dict[str, Any], folder: Path) -> None:
    if facts["axes"] != axes:
        kinds = {2: "2-D images", 3: "volumes"}
        raise UserError(f"config.data.root: '{folder}' holds {kinds[facts['axes']]}, this run takes {kinds[axes]}")
    if facts["channels"] != channels:
        raise UserError(
            f"config.model.in_chans={channels}, but '{folder}' was packed with {facts['channels']}: use that, or pack "
            "it again"
        )
    for name, value in facts["decoding"].items():
        own = data.get(name, value)
        own = list(own) if isinstance(own, tuple) else own
        if own is not None and own != value:
            raise UserError(
                f"config.data.{name}={own!r}, but '{folder}' was packed with {value!r}: use that, or pack it again"
            )


@dataclasses.dataclass(frozen=True)
class Grids:  # a class, not a closure: worker processes must be able to unpickle it
    """The grid of each image, with the size of a pixel in mm where its file stated it.

    spacings: of each image as packed, mm; empty where it is unknown.
    mask: `index -> mask`.
    """

    spacings: list[list[float]]
    mask: Callable[[int], np.ndarray]

    def __call__(self, index: int) -> grid.Grid:
        """The grid of one image."""
        same = grid.plain(self.mask, AXES, index)
        spacing = tuple(float(side) for side in self.spacings[index])
        return dataclasses.replace(same, spacing=spacing, unit="mm") if spacing else same


def source(data, channels: int) -> Source:
    """The images of the packed set in the folder `data.root`, of the splits that `data.split` names.

    Nothing is listed or decoded at the start: sizes, hashes, classes, patients and splits are in the index.
    """
    index = open_index(data, channels, AXES)
    place = lambda name: np.array([index.columns[name][i] for i in index.rows], np.int32)
    reader = Records(index.shards, place("shard"), place("record"), decoder_of(data, channels))
    masked = index.list_of("mask_hash")
    names, notes = [index.columns["name"][i] for i in index.rows], list(index.notes)
    spacings = [index.columns["spacing"][i] for i in index.rows] if "spacing" in index.columns else []
    known = any(len(spacing) for spacing in spacings)
    return Source(
        names,
        reader.read,
        labels=index.list_of("label"),
        groups=layout.groups_of_names(names, index.list_of("group"), data.group_pattern, notes),
        masks=reader.mask if masked else None,
        masked=[bool(value) for value in masked] if masked else None,
        grids=Grids(spacings, reader.mask) if known else None,
        mask_names=index.facts["mask_names"],
        notes=notes,
        splits=index.list_of("split"),
        unused=index.unused,
        scanners=index.list_of("scanner"),
        keys=[index.columns["key"][i] for i in index.rows],
        checked=index.checked(),
    )
