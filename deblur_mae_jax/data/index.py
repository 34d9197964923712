"""The pre-flight index: which images of a source can be used, and how large they are.

Every header (and optionally every pixel) is read before training starts. Unusable files are listed
in `skipped.csv`. The run trains on the usable images, in an order that never changes.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.data.source import BadImage, Skipped, Source, subset
from deblur_mae_jax.errors import UserError, unknown

CHECKS = ("pixels", "header")


@dataclasses.dataclass(frozen=True)
class Index:
    """Usable images of a source.

    source: the usable images.
    sizes: their (H, W) `(N, 2)`, or (D, H, W) `(N, 3)`, in pixels or voxels.
    skipped: the files that cannot be used.
    fingerprint: a hash that changes with any name or size and, with check="pixels", with any pixel.
    hashes: hash of the pixels of each image, "" with check="header".
    mask_values: values in the mask of each image, if masks were requested.
    """

    source: Source
    sizes: np.ndarray
    skipped: list[Skipped]
    fingerprint: str
    hashes: list[str]
    mask_values: list[list[int]] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.source)

    @functools.cached_property  # used for every image that is read
    def canvas(self) -> tuple[int, ...]:
        """The smallest (H, W), or (D, H, W), into which every image fits."""
        return tuple(int(side) for side in self.sizes.max(axis=0))


def pixel_hash(pixels: np.ndarray) -> str:
    """A 128-bit hash of one decoded image, in hexadecimal."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.tobytes())
    return digest.hexdigest()


def _check_one(source: Source, index: int, check: str, masks: bool) -> dict:
    entry: dict = {}
    try:
        size = source.size_of(index)
        digest = ""
        if check == "pixels":
            pixels = source.read(index)
            size = pixels.shape[:-1]
            digest = pixel_hash(pixels)
        if masks:
            assert source.masks is not None
            mask = source.masks(index)
            if mask.shape != tuple(size):
                raise BadImage(f"its mask has the shape {mask.shape}, the image {tuple(size)}")
            entry = {"mask": pixel_hash(mask), "values": [int(v) for v in np.unique(mask)]}
        return {"size": [int(side) for side in size], "hash": digest, **entry}
    except BadImage as error:
        return {"reason": str(error)}
    except OSError as error:
        return {"reason": f"cannot be read: {error.strerror or error}"}


def build(
    source: Source,
    *,
    check: str = "pixels",
    max_bad_fraction: float = 0.2,
    fraction: float = 1.0,
    seed: int = 0,
    num_threads: int = 4,
    cache: Path | None = None,
    settings: str = "",
    progress: Callable[[int, int], None] | None = None,
    masks: bool = False,
) -> Index:
    """Check every image of `source` and keep the usable ones.

    check: "pixels" decodes every file, "header" reads its header only.
    max_bad_fraction: largest share of unusable images.
    fraction: share of the images to use, chosen at random.
    seed: seed of that choice.
    num_threads: threads that read images.
    cache: JSON file of earlier results; an entry is reused if its stamp and `settings` are unchanged.
    settings: settings that change the decoded values.
    progress: called with the number of checked images and the number of all images.
    masks: read the masks too; an image without a mask is unusable.
    Raises `UserError` if no image is usable, or if more than `max_bad_fraction` of them are not.
    """
    if check not in CHECKS:
        raise unknown("config.data.check", check, CHECKS)
    if not 0 < fraction <= 1:
        raise UserError(f"config.data.fraction={fraction} must be in (0, 1]")
    if len(source) == 0:
        raise UserError(
            "config.data.root: no image found there"
            + (f" ({len(source.skipped)} other files)" if source.skipped else "")
        )
    if fraction < 1:
        count = max(1, round(fraction * len(source)))
        chosen = np.random.Generator(np.random.Philox(key=[seed, 1 << 40])).permutation(len(source))
        source = subset(source, np.sort(chosen[:count]))

    # Increase the number 3 when the rules for usable images change: it invalidates older caches.
    results = _examine(source, [check, settings, masks, 3], cache, num_threads, progress)
    return _usable(source, results, max_bad_fraction, masks)


def _examine(
    source: Source,
    settings: list[Any],
    cache: Path | None,
    num_threads: int,
    progress: Callable[[int, int], None] | None,
) -> list[dict]:
    """The result of `_check_one` for every image. Results for unchanged files come from `cache`."""
    check, _, masks, _ = settings
    cached: dict[str, dict] = {}
    if cache is not None and cache.exists():
        try:
            stored = json.loads(cache.read_text())
            cached = stored["entries"] if stored["settings"] == settings else {}
        except (ValueError, KeyError, TypeError):
            cached = {}  # a damaged cache only makes the start slower

    def examine(index: int) -> dict:
        stamp = source.stamp(index) if source.stamp else None
        if masks and stamp is not None and source.mask_stamp is not None:
            stamp = [stamp, source.mask_stamp(index)]
        entry = cached.get(source.names[index])
        if entry is not None and stamp is not None and entry.get("stamp") == stamp:
            return entry
        return {**_check_one(source, index, check, masks), "stamp": stamp}

    results = []
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        for done, result in enumerate(pool.map(examine, range(len(source))), start=1):
            results.append(result)
            if progress is not None:
                progress(done, len(source))
    if cache is not None:
        entries = dict(zip(source.names, results, strict=True))
        cache.write_text(json.dumps({"settings": settings, "entries": entries}))
    return results


def _usable(source: Source, results: list[dict], max_bad_fraction: float, masks: bool) -> Index:
    """The index of the usable images, with a fingerprint of their contents. Raises `UserError`."""
    good = [i for i, r in enumerate(results) if "reason" not in r]
    bad = [Skipped(source.names[i], r["reason"]) for i, r in enumerate(results) if "reason" in r]
    if not good:
        raise UserError(
            f"config.data.root: none of the {len(source)} images can be used; the first, "
            f"'{bad[0].name}', is {bad[0].reason}"
        )
    if len(bad) > max_bad_fraction * len(source):
        raise UserError(
            f"{len(bad)} of {len(source)} images cannot be used, more than "
            f"config.data.max_bad_fraction={max_bad_fraction:g} allows; the first, "
            f"'{bad[0].name}', is {bad[0].reason}"
        )
    digest = hashlib.sha256()
    for i in good:
        entry = results[i]
        digest.update(f"{source.names[i]}\0{entry['size']}\0{entry['hash']}".encode())
        digest.update(f"\0{entry['mask']}\n".encode() if masks else b"\n")
    sizes = np.array([results[i]["size"] for i in good], np.int32)
    usable = subset(source, np.array(good))
    hashes = [results[i]["hash"] for i in good]
    values = [results[i]["values"] for i in good] if masks else []
    return Index(usable, sizes, [*bad, *source.skipped], digest.hexdigest()[:16], hashes, values)


def write_skipped(path: Path, skipped: list[Skipped]) -> None:
    """`skipped.csv`: name, reason."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "reason"])
        writer.writerows((s.name, s.reason) for s in sorted(skipped, key=lambda s: s.name))
