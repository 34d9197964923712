"""The pre-flight index: which images of a source can be used, and how large they are.

Every header (and optionally every pixel) is read before training starts. Unusable files are listed
in `skipped.csv`. The run trains on the usable images, in an order that never changes.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.data import volume_reader
from deblur_mae_jax.data.listing import printable
from deblur_mae_jax.data.masks import edge_values
from deblur_mae_jax.data.perceptual import perceptual_hash
from deblur_mae_jax.data.source import BadImage, Checked, Skipped, Source, subset
from deblur_mae_jax.errors import UserError, unknown

# Frames of a clip whose perceptual hashes differ in so few of 64 bits are nearly equal.
STILL_BITS = 2
STILL = "nearly equal to an earlier frame of its clip"
CHECKS = ("pixels", "header")
KEEP_EVERY = 60.0  # seconds after which the results so far are written


@dataclasses.dataclass(frozen=True)
class Index:
    """Usable images of a source.

    source: the usable images.
    sizes: their (H, W) `(N, 2)`, or (D, H, W) `(N, 3)`, in pixels or voxels.
    skipped: the files that cannot be used.
    fingerprint: a hash that changes with any name or size and, with check="pixels", with any pixel.
    hashes: hash of the pixels of each image, "" with check="header".
    mask_values: values in the mask of each image, if masks were requested.
    edge_values: those of them that only occur between other regions.
    notes: assumptions that were made when images were read, with the number of images and the first name.
    earlier: the fingerprint that version 0.1 gave these images, if it differs.
    """

    source: Source
    sizes: np.ndarray
    skipped: list[Skipped]
    fingerprint: str
    hashes: list[str]
    mask_values: list[list[int]] = dataclasses.field(default_factory=list)
    edge_values: list[list[int]] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)
    earlier: str = ""

    def __len__(self) -> int:
        return len(self.source)

    @functools.cached_property  # used for every image that is read
    def canvas(self) -> tuple[int, ...]:
        """The smallest (H, W), or (D, H, W), into which every image fits."""
        return tuple(int(side) for side in self.sizes.max(axis=0))


class Unusable(UserError):
    """Too few images can be used.

    skipped: those that cannot, with reasons.
    """

    def __init__(self, message: str, skipped: list[Skipped]):
        super().__init__(message)
        self.skipped = skipped


def pixel_hash(pixels: np.ndarray) -> str:
    """A 128-bit hash of one decoded image, in hexadecimal."""
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(pixels.tobytes())
    return digest.hexdigest()


def check_one(source: Source, index: int, check: str, masks: bool) -> dict:
    """Read one image, and its mask if `masks`. Returns its size and hashes, or `reason` if it cannot be used."""
    entry: dict = {}
    notes: list[str] = []
    try:
        digest = ""
        if check == "pixels":
            pixels, notes = source.examine(index) if source.examine else (source.read(index), [])
            size: tuple[int, ...] = pixels.shape[:-1]
            digest = pixel_hash(pixels)
            notes = notes + _doubts(pixels)
            if source.clips is not None and source.clips[index]:
                entry["phash"] = np.packbits(perceptual_hash(pixels, 8)).tobytes().hex()
        else:
            size = source.size_of(index)
        if masks:
            mask, more = _mask(source, index, tuple(size))
            notes = notes + more
            notes = notes + _inverted(mask)
            inside, edges = edge_values(mask)
            entry |= {"mask": pixel_hash(mask), "values": sorted({*inside, *edges}), "edges": edges}
        if notes:
            entry["notes"] = notes
        return {"size": [int(side) for side in size], "hash": digest, **entry}
    except BadImage as error:
        return {"reason": str(error)}
    except (OSError, ValueError) as error:  # also an embedded NUL in a path
        return {"reason": f"cannot be read: {getattr(error, 'strerror', None) or error}"}
    except MemoryError:
        return {"reason": "not enough memory to read it"}


def _mask(source: Source, index: int, size: tuple[int, ...]) -> tuple[np.ndarray, list[str]]:
    """The mask of an image and the assumptions that were made. Raises `BadImage` if its size is not the image's."""
    assert source.masks is not None
    mask, notes = source.examine_mask(index) if source.examine_mask else (source.masks(index), [])
    if mask.shape != size:
        raise BadImage(f"its mask has the shape {mask.shape}, the image {size}")
    return mask, notes


def _inverted(mask: np.ndarray) -> list[str]:
    """A note on a mask whose border is not background."""
    within = np.zeros(mask.shape, bool)
    within[(slice(1, -1),) * mask.ndim] = True
    border = mask[~within]
    if (border > 0).mean() <= 0.5:
        return []
    value = np.bincount(border[border > 0]).argmax()
    return [f"most of the border of its mask holds {value}, and 0 is the background: is it inverted?"]


def _doubts(pixels: np.ndarray) -> list[str]:
    """What makes a 2-D image look like something else."""
    if pixels.dtype != np.uint8:
        return []
    low, high = pixels.min(), pixels.max()
    if low == high:
        return ["the image has a single gray level"]
    levels = np.flatnonzero(np.bincount(pixels[..., 0].ravel(), minlength=256))
    if len(levels) <= 8:
        return [f"the image has only {len(levels)} gray levels, as masks have"]
    return []


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
    Raises `Unusable` if no image is usable, or if more than `max_bad_fraction` of them are not, and `UserError`.
    """
    if check not in CHECKS:
        raise unknown("config.data.check", check, CHECKS)
    if not 0 < fraction <= 1:
        raise UserError(f"config.data.fraction={fraction} must be in (0, 1]")
    require_some(source, "")
    if fraction < 1:
        count = max(1, round(fraction * len(source)))
        chosen = np.random.Generator(np.random.Philox(key=[seed, 1 << 40])).permutation(len(source))
        source = subset(source, np.sort(chosen[:count]))

    if source.checked is not None:
        return _known(source, source.checked, masks, cache)
    # Increase the number 7 when the rules for usable images change: it invalidates older caches.
    results = _examine(source, [check, settings, masks, 7], cache, num_threads, progress)
    return _usable(source, results, max_bad_fraction, masks)


def _examine(
    source: Source,
    settings: list[Any],
    cache: Path | None,
    num_threads: int,
    progress: Callable[[int, int], None] | None,
) -> list[dict]:
    """The result of `check_one` for every image. Results for unchanged files come from `cache`."""
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
        if source.modalities and stamp is not None:  # its window is part of what is checked
            stamp = [stamp, source.modalities[index]]
        entry = cached.get(source.names[index])
        # What failed is tried again: a drive was gone for a moment, or a missing package is installed now.
        if entry is not None and stamp is not None and entry.get("stamp") == stamp and "reason" not in entry:
            return entry
        return {**check_one(source, index, check, masks), "stamp": stamp}

    results: list[dict] = []

    def keep() -> None:
        """Write what is known so far, so that a run that is killed or stopped while it checks need not begin again."""
        if cache is None:
            return
        with contextlib.suppress(OSError):  # a full disk: the next start reads the images again
            known = cached if len(results) < len(source) else {}
            entries = known | dict(zip(source.names, results, strict=False))
            draft = cache.with_name(cache.name + ".tmp")
            draft.write_text(json.dumps({"settings": settings, "entries": entries}))
            os.replace(draft, cache)

    kept, interval = time.monotonic(), KEEP_EVERY
    pool = ThreadPoolExecutor(max(1, num_threads))
    try:
        for done, result in enumerate(pool.map(examine, range(len(source))), start=1):
            results.append(result)
            if progress is not None:
                progress(done, len(source))
            if (now := time.monotonic()) - kept > interval:
                keep()
                kept = time.monotonic()
                interval = max(KEEP_EVERY, 20 * (kept - now))  # of millions of images, writing takes long
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        keep()
    return results


def _usable(source: Source, results: list[dict], max_bad_fraction: float, masks: bool) -> Index:
    """The index of the usable images, with a fingerprint of their contents. Raises `UserError`."""
    good = [i for i, r in enumerate(results) if "reason" not in r]
    bad = [Skipped(source.names[i], r["reason"]) for i, r in enumerate(results) if "reason" in r]
    clips = source.clips or [""] * len(source)
    repeated = repeated_frames([clips[i] for i in good], [results[i].get("phash", "") for i in good])
    still = {good[i] for i in repeated}
    good = [i for i in good if i not in still]
    if not good:
        raise Unusable(
            f"config.data.root: none of the {len(source)} images can be used; the first is "
            f"'{bad[0].name}': {bad[0].reason}",
            bad + source.skipped,
        )
    lost = bad + [s for s in source.skipped if s.damaged]
    if len(lost) > max_bad_fraction * (len(source) + len(lost) - len(bad)):
        raise Unusable(
            f"{len(lost)} of {len(source) + len(lost) - len(bad)} images cannot be used, more than "
            f"config.data.max_bad_fraction={max_bad_fraction:g} allows; the first is "
            f"'{lost[0].name}': {lost[0].reason}",
            bad + source.skipped,
        )
    fingerprint = _fingerprint(source.keys or source.names, results, good, masks)
    earlier = _fingerprint(source.names, results, good, masks) if source.keys else ""
    sizes = np.array([results[i]["size"] for i in good], np.int32)
    usable = subset(source, np.array(good))
    hashes = [results[i]["hash"] for i in good]
    values = [results[i]["values"] for i in good] if masks else []
    edges = [results[i]["edges"] for i in good] if masks else []
    notes = counted([(source.names[i], results[i].get("notes", ())) for i in good])
    notes += _scaled_in_two_ways(usable, [results[i].get("notes", ()) for i in good])
    skipped = [*bad, *(Skipped(source.names[i], STILL) for i in sorted(still)), *source.skipped]
    return Index(usable, sizes, skipped, fingerprint, hashes, values, edges, notes, earlier)


def _scaled_in_two_ways(source: Source, notes: list[Sequence[str]]) -> list[str]:
    """A note on CT of which some volumes are read as Hounsfield units and others as scaled already."""
    ct = [i for i, modality in enumerate(source.modalities or ()) if modality == "ct"]
    already = [i for i in ct if {volume_reader.WINDOWED, volume_reader.SCALED} & set(notes[i])]
    if not already or len(already) == len(ct):
        return []
    return [
        f"CT IS SCALED IN TWO WAYS: {len(already)} of {len(ct)} volumes are read as windowed already, the first "
        f"'{source.names[already[0]]}', the others as Hounsfield units, so one tissue has two values. Bring all to one "
        "scale"
    ]


def _fingerprint(names: list[str], results: list[dict], good: list[int], masks: bool) -> str:
    """A hash of the names, sizes and pixels of the usable images, and of their masks if they were read."""
    digest = hashlib.sha256()
    for i in good:
        entry = results[i]
        digest.update(f"{names[i]}\0{entry['size']}\0{entry['hash']}".encode())
        digest.update(f"\0{entry['mask']}\n".encode() if masks else b"\n")
    return digest.hexdigest()[:16]


def repeated_frames(clips: Sequence[str], codes: Sequence[str]) -> set[int]:
    """Frames that are nearly equal to an earlier one of their clip.

    clips: clip of each image, "" for single pictures.
    codes: perceptual hash of each image, in hexadecimal; "" if it has none.
    """
    kept: dict[str, list[int]] = {}
    still = set()
    for i, (clip, code) in enumerate(zip(clips, codes, strict=True)):
        if not clip or not code:
            continue
        earlier = kept.setdefault(clip, [])
        if any((int(code, 16) ^ other).bit_count() <= STILL_BITS for other in earlier):
            still.add(i)
        else:
            earlier.append(int(code, 16))
    return still


def _known(source: Source, checked: Checked, masks: bool, cache: Path | None) -> Index:
    """The index of a source that was checked when it was packed. Its hashes are written to `cache`."""
    if cache is not None and any(checked.hashes):
        with contextlib.suppress(OSError):  # a full disk: later runs cannot tell whether this one saw their images
            cache.write_text(json.dumps({"settings": ["packed"], "hashes": sorted(set(checked.hashes) - {""})}))
    digest = hashlib.sha256()
    keys = source.keys or source.names
    for i, key in enumerate(keys):
        digest.update(f"{key}\0{checked.sizes[i].tolist()}\0{checked.hashes[i]}".encode())
        digest.update(f"\0{checked.masks[i]}\n".encode() if masks and checked.masks else b"\n")
    values = checked.mask_values or [] if masks else []
    edges = checked.edge_values or [] if masks else []
    return Index(source, checked.sizes, list(source.skipped), digest.hexdigest()[:16], checked.hashes, values, edges)


def require_some(source: Source, root: str) -> None:
    """Raise `UserError` if a source has no image.

    root: where it was looked for; "" if that is not known.
    """
    if len(source) == 0:
        where = f"in '{root}'" if root else "there"
        others = f" ({len(source.skipped)} other files; {_first(source.skipped)})" if source.skipped else ""
        raise UserError(f"config.data.root: no image found {where}{others}")


def _first(skipped: list[Skipped]) -> str:
    return f"the first is '{skipped[0].name}': {skipped[0].reason}"


def counted(notes: list[tuple[str, Iterable[str]]]) -> list[str]:
    """One line for every kind of note, with the number of images and the first name. Numbers in notes may differ."""
    by_kind: dict[str, list[tuple[str, str]]] = {}
    for name, own in notes:
        for note in own:
            by_kind.setdefault(re.sub(r"(?<![#\w])[\d.]+(?! is #)", "0", note), []).append((name, note))
    return [
        f"{found[0][1]} ({len(found)} images, the first '{found[0][0]}')"
        if len(found) > 1
        else f"{found[0][1]} ('{found[0][0]}')"
        for found in by_kind.values()
    ]


def write_skipped(path: Path, skipped: list[Skipped]) -> None:
    """`skipped.csv`: name, reason."""
    draft = path.with_name(path.name + ".tmp")  # a full disk must not cost the list that is there
    with open(draft, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "reason"])
        writer.writerows((printable(s.name), printable(s.reason)) for s in sorted(skipped, key=lambda s: s.name))
    os.replace(draft, path)


def add_skipped(path: Path, item: Skipped) -> None:
    """Add a line to `skipped.csv`. Writing all of them again for each takes long if there are thousands."""
    with open(path, "a", newline="", encoding="utf-8") as file:
        csv.writer(file).writerow([printable(item.name), printable(item.reason)])


def hashes_of_index(path: Path) -> list[str] | None:
    """Hashes of the images of a run, read from its index. `None` if the index holds no hashes."""
    try:
        content = json.loads(path.read_text())
        hashes = content.get("hashes") or {e.get("hash") for e in content["entries"].values()}
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return sorted(filter(None, hashes)) or None


def known_hashes(path: Path) -> set[str] | None:
    """Hashes of the images used in pre-training, from the copy in the workdir. `None` if there is no copy."""
    return set(json.loads(path.read_text())) if path.exists() else None
