"""Pack a data set into ArrayRecord shards with an index, so that a run starts from the index alone.

    OUT/data-00000-of-00031.array_record   one record per image, several per volume (`records.py`)
    OUT/index.parquet                      one row per image: name, size, class, patient, split, hashes, place
    OUT/dataset.json                       settings, counts, hash of every shard
    OUT/skipped.csv                        what was left out, and why

The bytes depend on the images and the settings alone, not on the number of workers. A shard is complete or absent, so
packing that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from ml_collections import ConfigDict

from deblur_mae_jax import config as fields
from deblur_mae_jax.data import dataset, privacy, records
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.shard_writer import (
    Job,
    begin_worker,
    can_be_used,
    file_hash,
    part_of,
    sidecar,
    write_in_worker,
    write_shard,
)
from deblur_mae_jax.data.source import BadImage, Skipped, Source
from deblur_mae_jax.errors import UserError, local_path

VERSION = 1
INDEX, FACTS, SKIPPED = "index.parquet", "dataset.json", "skipped.csv"
SHARD = re.compile(r"data-\d{5}-of-\d{5}\.array_record(\.json)?((\.\d+)?\.tmp)?")
# Bytes of a record for each byte of a file or array, to divide a set into shards before anything is read.
GUESS = {"keep": 1.0, "png": 0.6, "jpeg95": 0.3, "raw": 1.0}


@dataclasses.dataclass(frozen=True)
class Packed:
    """The result of packing.

    path: folder of the packed set.
    num_images: number of images in it.
    num_skipped: number of images that could not be read.
    num_shards: number of its shards.
    reused: number of shards that an earlier, interrupted packing had finished.
    """

    path: Path
    num_images: int
    num_skipped: int
    num_shards: int
    reused: int


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
    with _alone_in(folder):
        source = _source(config, folder)
        settings = _settings(config, source, encode, shard_mb)
        jobs = list(_jobs(source, folder, settings, _reading_fields(config, source)))
        finished = [job for job in jobs if _is_complete(job)]
        _remove_others(folder, jobs)
        todo = [job for job in jobs if job not in finished]
        if todo:  # without these facts the folder is no packed set, until all shards are of one state
            (folder / FACTS).unlink(missing_ok=True)
        _run(source, todo, workers, lambda done: progress(len(finished) + done, len(jobs)) if progress else None)
        _refuse_many_bad(jobs, len(source), float(config.data.max_bad_fraction))
        return _write_index(folder, jobs, source, settings, licence, len(finished))


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes from packing into a folder, and turn errors of the disk into a `UserError`."""
    lock = FileLock(folder.with_name(f".{folder.name}.packing"), timeout=0)
    try:
        with lock:
            try:
                yield
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        raise UserError(f"OUT: '{folder}' is being packed by another process. Wait for it, or name another") from None
    except OSError as error:  # a full disk
        raise UserError(f"OUT: cannot write to '{folder}': {error.strerror or error}; start again to go on") from error


def _source(config: ConfigDict, folder: Path) -> Source:
    """The images to pack. Raises `UserError` if there are none."""
    # The key of the names of DICOM files and patients is beside the set, and is not to be shared with it.
    privacy.use(folder.with_name(folder.name + "_private"), make=True)
    source = dataset.load_source(config)
    if dataset.name_used(config) in ("dicom", "dicom_volumes"):
        # Their keys are hashes without a secret, by which somebody who has the files could find them in the index.
        source = dataclasses.replace(source, keys=None)
    if not len(source):
        data_index.build(source)  # raises what is wrong
    return source


def _settings(config: ConfigDict, source: Source, encode: str, shard_mb: int) -> dict[str, Any]:
    """What the bytes of the shards depend on, beside the images."""
    return {
        "version": VERSION, "encode": encode, "channels": int(config.model.in_chans),
        "axes": 3 if _is_3d(source) else 2, "block": records.BLOCK,
        "decoding": json.loads(json.dumps(decoding_fields(config))), "shard_mb": shard_mb,
        "source": dataset.name_used(config),
    }  # fmt: skip


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
    others = ("num_threads", "num_workers", "store", "decoded", "max_bad_fraction")
    values = {name: value for name, value in config.data.to_dict().items() if name not in others}
    if source.stamp is not None:  # files: the same ones may be elsewhere
        values.pop("root")
    return json.dumps(values, sort_keys=True, default=str)


def _is_3d(source: Source) -> bool:
    return source.dtype == np.float16


def _jobs(source: Source, folder: Path, settings: dict[str, Any], reading: str) -> Iterator[Job]:
    """Divide the images into shards of about equal numbers.

    reading: the fields of the config on which images may depend.
    """
    sample = range(0, len(source), max(1, len(source) // 64))
    sizes = [_expected_bytes(source, i, settings["encode"]) for i in sample]
    total = float(np.mean(sizes)) * len(source)
    count = max(1, min(len(source), round(total / (1e6 * settings["shard_mb"]) + 0.499)))
    edges = np.linspace(0, len(source), count + 1).round().astype(int)
    for number, (first, last) in enumerate(itertools.pairwise(edges)):
        part = part_of(source, int(first), int(last - first))
        path = folder / f"data-{number:05d}-of-{count:05d}.array_record"
        yield Job(part, number, str(path), settings["encode"], _stamp(part, settings, reading), int(first))


def _expected_bytes(source: Source, index: int, encode: str) -> float:
    stamp = source.stamp(index) if source.stamp is not None else None
    if encode == "keep" and stamp and isinstance(stamp[0], int):  # the size of its own file
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


def _is_complete(job: Job) -> bool:
    try:
        known = json.loads(sidecar(job.path).read_text())
        whole = known["stamp"] == job.stamp and known["sha256"] == file_hash(job.path)
        # A drive may have been gone for a moment, or a missing package is installed now.
        return bool(whole) and not any(can_be_used(job.source, name) for name, _ in known["skipped"])
    except (OSError, ValueError, KeyError):
        return False


def _remove_others(folder: Path, jobs: list[Job]) -> None:
    """Remove the shards of an earlier division, and drafts."""
    wanted = {job.path for job in jobs} | {str(sidecar(job.path)) for job in jobs}
    for path in folder.iterdir():
        if SHARD.fullmatch(path.name) and str(path) not in wanted:
            path.unlink()


def _run(source: Source, jobs: list[Job], workers: int, done: Callable[[int], None]) -> None:
    if workers <= 1 or len(jobs) <= 1:
        for number, job in enumerate(jobs, start=1):
            write_shard(job)
            done(number)
        return
    # "spawn": the parent may have started threads.
    nobody = part_of(source, 0, 0)
    counts, light = [len(job.source) for job in jobs], [dataclasses.replace(job, source=nobody) for job in jobs]
    with ProcessPoolExecutor(
        min(workers, len(jobs)), get_context("spawn"), begin_worker, (source, os.getpid())
    ) as pool:
        try:
            for number, _ in enumerate(pool.map(write_in_worker, light, counts), start=1):
                done(number)
        except BrokenProcessPool as error:
            raise UserError(
                f"a worker process was killed, as when the memory is full. Start again with fewer than --workers="
                f"{workers}; what is packed is kept"
            ) from error


def _refuse_many_bad(jobs: list[Job], count: int, most: float) -> None:
    """Raise `UserError` if more than a share of the images cannot be used.

    count: number of images.
    most: `config.data.max_bad_fraction`.
    """
    skipped = [item for job in jobs for item in json.loads(sidecar(job.path).read_text())["skipped"]]
    if most * count < len(skipped) < count:  # without any image there is another message
        name, reason = skipped[0]
        raise UserError(
            f"{len(skipped)} of {count} images cannot be used, more than config.data.max_bad_fraction={most:g} allows; "
            f"the first is '{name}': {reason}. --data max_bad_fraction=0.9 packs the others"
        )


def _write_index(
    folder: Path, jobs: list[Job], source: Source, settings: dict[str, Any], licence: str, reused: int
) -> Packed:
    """Join the rows of all shards to the index, and write what is known of the set."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = []
    skipped = list(source.skipped)
    hashes = {}
    for job in jobs:
        content = json.loads(sidecar(job.path).read_text())
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
        "bytes": {Path(job.path).name: os.path.getsize(job.path) for job in jobs},
        "masks": any(row["mask_hash"] for row in rows), "mask_names": source.mask_names, "licence": licence,
        "index_sha256": file_hash(str(folder / INDEX)),
    }  # fmt: skip
    draft = folder / (FACTS + ".tmp")
    draft.write_text(json.dumps(facts, indent=2) + "\n")
    os.replace(draft, folder / FACTS)
    return Packed(folder, len(rows), len(skipped), len(jobs), reused)
