"""Write one shard of a packed set: read, check and store its images, and note the rows of the index beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data import records
from deblur_mae_jax.data.image_files import Files
from deblur_mae_jax.data.source import BadImage, Source, subset
from deblur_mae_jax.errors import one_line

OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True)
class Job:
    """One shard.

    source: its images.
    first: number of the first of them in the whole source.
    """

    source: Source
    number: int
    path: str
    encode: str
    stamp: str
    first: int = 0


def sidecar(path: str) -> Path:
    """The file beside a shard that holds its rows of the index."""
    return Path(path + ".json")


def write_shard(job: Job) -> None:
    """Read, check and write the images of one shard. It appears under its name when it is complete."""
    from array_record.python import array_record_module

    draft = f"{job.path}.{os.getpid()}.tmp"  # a worker whose packing was killed may still write its own
    source = _decoding_once(job.source)
    writer = array_record_module.ArrayRecordWriter(draft, OPTIONS)
    rows: list[dict[str, Any]] = []
    skipped: list[list[str]] = []
    count = 0
    try:
        for index in range(len(source)):
            entry = data_index.check_one(source, index, "pixels", _has_mask(source, index))
            if "reason" in entry:
                skipped.append([source.names[index], entry["reason"]])
                continue
            try:
                parts = _parts(source, job.source.read, index, job.encode, entry)
            except (BadImage, OSError) as error:  # it went away since it was checked
                skipped.append([source.names[index], str(error)])
                continue
            entry |= _as_stored(parts)
            written = [records.join(parts)]
            if source.dtype == np.float16:
                written += records.blocks(np.asarray(source.read(index)))
            for record in written:
                with _as_os_error():
                    writer.write(record)
            rows.append({**_row(source, index, entry), "record": count, "bytes": sum(len(r) for r in written)})
            count += len(written)
    finally:
        with _as_os_error():
            writer.close()
    content = {"stamp": job.stamp, "sha256": file_hash(draft), "rows": rows, "skipped": skipped}
    os.replace(draft, job.path)
    path = sidecar(job.path)
    note = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    note.write_text(json.dumps(content))
    os.replace(note, path)


_source: Source | None = None  # of a worker process: all images of the set


def begin_worker(source: Source, parent: int) -> None:
    """Keep the images of the set, which would else be sent with every shard, and end when the packing ends.

    parent: the process that packs.
    """
    global _source
    _source = source

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)  # killed, so that nobody waits for this shard

    threading.Thread(target=watch, daemon=True).start()


def write_in_worker(job: Job, count: int) -> None:
    """`write_shard` of a job whose images this worker process knows.

    count: number of its images.
    """
    assert _source is not None
    write_shard(dataclasses.replace(job, source=part_of(_source, job.first, count)))


def part_of(source: Source, first: int, count: int) -> Source:
    """The images of one shard."""
    return dataclasses.replace(subset(source, np.arange(first, first + count)), skipped=[], notes=[])


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    """Turn what ArrayRecord makes of an error of the operating system, such as a full disk, into an `OSError`."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(one_line(error)) from error


def can_be_used(source: Source, name: str) -> bool:
    """Whether an image that was left out before can be used now."""
    index = source.names.index(name)
    return "reason" not in data_index.check_one(source, index, "pixels", _has_mask(source, index))


def _as_stored(parts: records.Parts) -> dict[str, Any]:
    """The hash of the pixels that are read from the packed set, if they are not those of the file."""
    if parts.facts["encode"] != "jpeg95":
        return {}
    stored = records.decode_image(parts.image, parts.facts["encode"], tuple(parts.facts["shape"]))
    return {"hash": data_index.pixel_hash(stored)}


def _has_mask(source: Source, index: int) -> bool:
    return source.masks is not None and (source.masked is None or source.masked[index])


class _Last:
    """Keeps the last result of a function of an index."""

    def __init__(self, function: Callable[[int], Any]):
        self.function, self.index, self.result = function, -1, None

    def __call__(self, index: int) -> Any:
        if index != self.index:
            self.index, self.result = index, self.function(index)
        return self.result


def _decoding_once(source: Source) -> Source:
    """The same source; an image that is checked and then stored is decoded once."""
    examine = _Last(source.examine or (lambda index: (source.read(index), [])))
    out = dataclasses.replace(source, examine=examine, read=lambda index: examine(index)[0])
    if source.masks is None:
        return out
    masks = source.masks
    truth = _Last(source.examine_mask or (lambda index: (masks(index), [])))
    return dataclasses.replace(out, examine_mask=truth, masks=lambda index: truth(index)[0])


def _parts(
    source: Source, read: Callable[[int], np.ndarray], index: int, encode: str, entry: dict[str, Any]
) -> records.Parts:
    """What is stored of an image.

    read: the reading function of the files.
    """
    pixels = np.asarray(source.read(index))
    if pixels.dtype == np.uint8:
        image = _file_bytes(read, index) if encode == "keep" else b""
        facts: dict[str, Any] = {"shape": list(pixels.shape), "encode": "file" if image else encode}
        if not image:
            facts["encode"] = "png" if encode == "keep" else encode
            image = records.encode_image(pixels, facts["encode"])
        mask = records.compress(source.masks(index)) if source.masks and "mask" in entry else b""
        return records.Parts(image, mask, b"", facts)
    facts = {"shape": list(pixels.shape), "encode": "blosc2"}
    grid = source.grid_of(index)
    facts["spacing"], facts["unit"] = list(grid.spacing), grid.unit
    facts["affine"] = (np.diag([*grid.spacing, 1.0]) if grid.affine is None else grid.affine).tolist()
    facts["original"] = list(grid.finish(np.zeros(pixels.shape[:-1], np.uint8)).shape)
    mask = truth = b""
    if source.masks and "mask" in entry:
        own, original = source.masks(index), grid.truth()
        mask = records.compress(own)
        if original.shape != own.shape or not np.array_equal(original, own):
            truth = records.compress(original)
    return records.Parts(b"", mask, truth, facts)


def _file_bytes(read: Callable[[int], np.ndarray], index: int) -> bytes:
    """The bytes of an image file, as they are; b"" for images from elsewhere, such as DICOM."""
    found = _files_of(read, index)
    if found is None:
        return b""
    return Path(found).read_bytes()


def _files_of(read: Any, index: int) -> str | None:
    """The path behind a reading function, through subsets and joined sources."""
    while hasattr(read, "where"):
        index, read = read.where[index], read.function
    owner = getattr(read, "__self__", None)
    return owner.paths[index] if isinstance(owner, Files) else None


def _row(source: Source, index: int, entry: dict[str, Any]) -> dict[str, Any]:
    """The row of an image in the index, without its place."""
    pick = lambda values: values[index] if values is not None else ""
    return {
        "name": source.names[index], "key": (source.keys or source.names)[index], "size": entry["size"],
        "sha256": entry["hash"], "label": pick(source.labels), "group": pick(source.groups),
        "split": pick(source.splits),
        "modality": pick(source.modalities), "clip": pick(source.clips), "mask_hash": entry.get("mask", ""),
        "scanner": pick(source.scanners),
        "mask_values": entry.get("values", []), "edge_values": entry.get("edges", []), "phash": entry.get("phash", ""),
        "notes": entry.get("notes", []), "spacing": _spacing(source, index),
        "color_frac": float(source.color_frac(index)) if source.color_frac is not None else None,
    }  # fmt: skip


def _spacing(source: Source, index: int) -> list[float]:
    """The size of a pixel or voxel in mm; [] if it is unknown."""
    if source.grids is None:
        return []
    grid = source.grid_of(index)
    return list(grid.spacing) if grid.unit == "mm" else []


def file_hash(path: str) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
