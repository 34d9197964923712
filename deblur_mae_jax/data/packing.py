"""Pack a data set into ArrayRecord shards with an index, so that a run starts from the index alone.

    OUT/data-00000-of-00031.array_record   one record per image, several per volume (`records.py`)
    OUT/index.parquet                      one row per image: name, size, class, patient, split, hashes, place
    OUT/dataset.json                       settings, counts, hash of every shard
    OUT/skipped.csv                        what was left out, and why

The bytes depend on the images and the settings alone, not on the number of workers. A shard is complete or absent, so
packing that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax import config as fields
from deblur_mae_jax.data import dataset, privacy, records
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.image_files import Files
from deblur_mae_jax.data.source import BadImage, Skipped, Source, subset
from deblur_mae_jax.errors import UserError, local_path

VERSION = 1
INDEX, FACTS, SKIPPED = "index.parquet", "dataset.json", "skipped.csv"
OPTIONS = "group_size:1,uncompressed"
SHARD = re.compile(r"data-\d{5}-of-\d{5}\.array_record(\.json)?(\.tmp)?")
# Bytes of a record for each byte of a file or array, to divide a set into shards before anything is read.
GUESS = {"keep": 1.0, "png": 0.6, "jpeg95": 0.3, "raw": 1.0}


@dataclasses.dataclass(frozen=True)
class Packed:
    """The result of packing."""

    path: Path
    num_images: int
    num_skipped: int
    num_shards: int
    reused: int


@dataclasses.dataclass(frozen=True)
class _Job:
    """One shard: the images `first` to `last` of the source."""

    source: Source
    number: int
    path: str
    encode: str
    stamp: str


def pack(
    config: ConfigDict,
    out: str | Path,
    *,
    encode: str = "keep",
    shard_mb: int = 512,
    workers: int = 1,
    licence: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Packed:
    """Pack the images of all splits that `config.data` names.

    config: a resolved config; `config.data` and `config.model.in_chans` decide how images are read.
    out: folder of the packed set.
    encode: "keep" (the bytes of image files; other images losslessly), "png", "jpeg95" or "raw".
    shard_mb: approximate size of a shard, 10^6 bytes.
    workers: processes.
    licence: text that is kept with the set.
    progress: called with the number of finished shards and of all shards.
    Raises `UserError`.
    """
    records.check_encoding(encode)
    if not shard_mb > 0:
        raise UserError(f"--shard_mb={shard_mb} must be above 0")
    folder = _own_folder(local_path(out, "OUT").resolve(), str(config.data.root))
    # The key of the names of DICOM files and patients is beside the set, and is not to be shared with it.
    privacy.use(folder.with_name(folder.name + "_private"), make=True)
    source = dataset.load_source(config)
    if dataset.name_used(config) in ("dicom", "dicom_volumes"):
        # Their keys are hashes without a secret, by which somebody who has the files could find them in the index.
        source = dataclasses.replace(source, keys=None)
    if not len(source):
        data_index.build(source)  # raises what is wrong
    settings = {
        "version": VERSION, "encode": encode, "channels": int(config.model.in_chans),
        "axes": 3 if _is_3d(source) else 2, "block": records.BLOCK,
        "decoding": json.loads(json.dumps(decoding_fields(config))), "shard_mb": shard_mb,
        "source": dataset.name_used(config),
    }  # fmt: skip
    jobs = list(_jobs(source, folder, settings, _reading_fields(config, source)))
    finished = [job for job in jobs if _is_complete(job)]
    _remove_others(folder, jobs)
    todo = [job for job in jobs if job not in finished]
    if todo:  # without these facts the folder is no packed set, until all shards are of one state
        (folder / FACTS).unlink(missing_ok=True)
    _run(todo, workers, lambda done: progress(len(finished) + done, len(jobs)) if progress else None)
    return _write_index(folder, jobs, source, settings, licence, len(finished))


def decoding_fields(config: ConfigDict) -> dict[str, Any]:
    """The fields of `config.data` that change decoded values, by name."""
    values = config.data.to_dict()
    return {name: values[name] for name in fields.DECODING if name in values}


def _own_folder(folder: Path, root: str) -> Path:
    """Make the folder of a packed set. Raises `UserError` if it holds other files, or is a part of the source."""
    for part in re.split("[,;]", root) if root else ():
        source = Path(re.sub(r"=(ct|mr)$", "", part.strip(), flags=re.I)).expanduser().resolve()
        if source.is_dir() and folder.is_relative_to(source):
            raise UserError(f"OUT: '{folder}' is in SOURCE, '{source}', whose files would then include the packed set")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise UserError(f"OUT: cannot write to '{folder}': {error.strerror}") from error
    ours = [name for name in held if SHARD.fullmatch(name) or name.removesuffix(".tmp") in (INDEX, FACTS, SKIPPED)]
    if held and not ours:
        raise UserError(f"OUT: '{folder}' holds other files, such as '{min(held)}'; name a new or an empty folder")
    return folder


def _reading_fields(config: ConfigDict, source: Source) -> str:
    """The fields of `config.data` on which images may depend, for sources that cannot tell when they change."""
    others = ("num_threads", "num_workers", "store", "decoded")
    values = {name: value for name, value in config.data.to_dict().items() if name not in others}
    if source.stamp is not None:  # files: the same ones may be elsewhere
        values.pop("root")
    return json.dumps(values, sort_keys=True, default=str)


def _is_3d(source: Source) -> bool:
    return source.dtype == np.float16


def _jobs(source: Source, folder: Path, settings: dict[str, Any], reading: str) -> Iterator[_Job]:
    """Divide the images into shards of about equal numbers.

    reading: the fields of the config on which images may depend.
    """
    sample = range(0, len(source), max(1, len(source) // 64))
    sizes = [_expected_bytes(source, i, settings["encode"]) for i in sample]
    total = float(np.mean(sizes)) * len(source)
    count = max(1, min(len(source), round(total / (1e6 * settings["shard_mb"]) + 0.499)))
    edges = np.linspace(0, len(source), count + 1).round().astype(int)
    for number, (first, last) in enumerate(itertools.pairwise(edges)):
        part = dataclasses.replace(subset(source, np.arange(first, last)), skipped=[], notes=[])
        path = folder / f"data-{number:05d}-of-{count:05d}.array_record"
        yield _Job(part, number, str(path), settings["encode"], _stamp(part, settings, reading))


def _expected_bytes(source: Source, index: int, encode: str) -> float:
    stamp = source.stamp(index) if source.stamp is not None else None
    if encode == "keep" and stamp and isinstance(stamp[0], int):
        return float(stamp[0])
    try:
        size = float(np.prod(source.size_of(index))) * np.dtype(source.dtype).itemsize
    except (BadImage, OSError):
        return 0.0
    return size * GUESS[encode]


def _stamp(source: Source, settings: dict[str, Any], reading: str) -> str:
    """A hash that changes with the settings, and with name, size, time and modality of any file of a shard."""
    digest = hashlib.sha256((json.dumps(settings, sort_keys=True) + reading).encode())
    for i, name in enumerate(source.names):
        stamp = source.stamp(i) if source.stamp is not None else None
        mask = source.mask_stamp(i) if source.mask_stamp is not None else None
        known = [
            source.labels and source.labels[i],
            source.groups and source.groups[i],
            source.splits and source.splits[i],
            source.modalities and source.modalities[i],
        ]
        digest.update(repr((name, stamp, mask, known)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _sidecar(path: str) -> Path:
    return Path(path + ".json")


def _is_complete(job: _Job) -> bool:
    try:
        sidecar = json.loads(_sidecar(job.path).read_text())
        return bool(sidecar["stamp"] == job.stamp and sidecar["sha256"] == file_hash(job.path))
    except (OSError, ValueError, KeyError):
        return False


def _remove_others(folder: Path, jobs: list[_Job]) -> None:
    """Remove the shards of an earlier division, and drafts."""
    wanted = {job.path for job in jobs} | {str(_sidecar(job.path)) for job in jobs}
    for path in folder.iterdir():
        if SHARD.fullmatch(path.name) and str(path) not in wanted:
            path.unlink()


def _run(jobs: list[_Job], workers: int, done: Callable[[int], None]) -> None:
    if workers <= 1 or len(jobs) <= 1:
        for number, job in enumerate(jobs, start=1):
            _write_shard(job)
            done(number)
        return
    # "spawn": the parent may have started threads.
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=get_context("spawn")) as pool:
        for number, _ in enumerate(pool.map(_write_shard, jobs), start=1):
            done(number)


def _write_shard(job: _Job) -> None:
    """Read, check and write the images of one shard. It appears under its name when it is complete."""
    from array_record.python import array_record_module

    draft = f"{job.path}.tmp"
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
            written = [records.join(_parts(source, job.source.read, index, job.encode, entry))]
            if _is_3d(source):
                written += records.blocks(np.asarray(source.read(index)))
            for record in written:
                writer.write(record)
            rows.append({**_row(source, index, entry), "record": count, "bytes": sum(len(r) for r in written)})
            count += len(written)
    finally:
        writer.close()
    os.replace(draft, job.path)
    content = {"stamp": job.stamp, "sha256": file_hash(job.path), "rows": rows, "skipped": skipped}
    path = _sidecar(job.path)
    path.with_name(path.name + ".tmp").write_text(json.dumps(content))
    os.replace(path.with_name(path.name + ".tmp"), path)


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


def _write_index(
    folder: Path, jobs: list[_Job], source: Source, settings: dict[str, Any], licence: str, reused: int
) -> Packed:
    """Join the rows of all shards to the index, and write what is known of the set."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    skipped = list(source.skipped)
    hashes = {}
    for job in jobs:
        content = json.loads(_sidecar(job.path).read_text())
        rows += [{**row, "shard": job.number} for row in content["rows"]]
        skipped += [Skipped(name, reason) for name, reason in content["skipped"]]
        hashes[Path(job.path).name] = content["sha256"]
    if not rows:
        first = f"; the first is '{skipped[0].name}': {skipped[0].reason}" if skipped else ""
        raise UserError(f"none of the {len(source)} images can be used{first}")
    still = data_index.repeated_frames([row["clip"] for row in rows], [row["phash"] for row in rows])
    skipped += [Skipped(rows[i]["name"], data_index.STILL) for i in sorted(still)]
    rows = [row for i, row in enumerate(rows) if i not in still]
    notes = [*source.notes, *data_index.counted([(row["name"], row["notes"]) for row in rows])]
    for row in rows:
        row.pop("notes"), row.pop("phash")
    table = pa.Table.from_pylist(rows)
    draft = folder / (INDEX + ".tmp")
    pq.write_table(table, draft, compression="zstd")
    os.replace(draft, folder / INDEX)
    data_index.write_skipped(folder / SKIPPED, skipped)
    facts = {
        **settings, "num_images": len(rows), "num_skipped": len(skipped), "shards": hashes, "notes": notes,
        "masks": any(row["mask_hash"] for row in rows), "mask_names": source.mask_names, "licence": licence,
        "index_sha256": file_hash(str(folder / INDEX)),
    }  # fmt: skip
    draft = folder / (FACTS + ".tmp")
    draft.write_text(json.dumps(facts, indent=2) + "\n")
    os.replace(draft, folder / FACTS)
    return Packed(folder, len(rows), len(skipped), len(jobs), reused)
