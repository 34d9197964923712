"""Describe a data set in a short table: images, masks, splits, classes, patients, what is left out, what is assumed."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from deblur_mae_jax.data.index import Index
from deblur_mae_jax.data.source import Skipped, Source

SHOWN = 12
REASONS = 6
WIDTH = 116
JUDGED = ("train", "val", "test")  # a patient belongs to one of these


def rows(
    index: Index,
    *,
    indices: Mapping[str, np.ndarray] | None = None,
    mask_classes: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> list[tuple[str, str]]:
    """The rows of the table, as (name, text).

    indices: indices of the images of each split, if splits were drawn.
    mask_classes: classes of a segmentation, with the background first.
    notes: further assumptions.
    """
    source = index.source
    out = [("volumes" if len(index.canvas) == 3 else "images", _images(index))]
    if source.masks is not None:
        count = sum(source.masked) if source.masked is not None else len(source)
        classes = f"; classes {', '.join(mask_classes)}" if mask_classes else ""
        out.append(("masks", f"{count} of {len(source)}{classes}"))
    out.append(("splits", _splits(index, indices)))
    labels = [label for label in source.labels or [] if label]
    if labels and not mask_classes:
        unlabelled = len(source) - len(labels)
        out.append(("classes", _counts(Counter(labels)) + (f", no class {unlabelled}" if unlabelled else "")))
    out.append(("patients", _patients(source.groups) + _in_several_splits(source, indices)))
    out += [("left out" if i == 0 else "", line) for i, line in enumerate(left_out(index.skipped))]
    assumed = [*source.notes, *index.notes, *notes]
    out += [("assumed" if i == 0 else "", line) for i, line in enumerate(assumed)]
    return out


def lines(table: Sequence[tuple[str, str]]) -> list[str]:
    """The table as lines of text, with long texts continued below."""
    width = max(len(name) for name, _ in table) + 2
    out = []
    for name, text in table:
        for i, part in enumerate(_wrapped(text, WIDTH - width)):
            out.append(f"{name if i == 0 else '':<{width}}{part}")
    return out


def left_out(skipped: Sequence[Skipped]) -> list[str]:
    """The files that are left out, by reason; the most frequent reasons first."""
    by_reason: dict[str, list[str]] = {}
    for item in skipped:
        by_reason.setdefault(re.sub(r"#[0-9a-f]{6}|\d+(\.\d+)?|'[^']*'", "...", item.reason), []).append(item.name)
    first = {item.name: item.reason for item in reversed(skipped)}
    ordered = sorted(by_reason.values(), key=lambda names: (-len(names), names[0]))
    out = []
    for names in ordered[:REASONS]:
        start = "1 file, " if len(names) == 1 else f"{len(names)} files, the first "
        out.append(f"{start}'{names[0]}': {first[names[0]]}")
    rest = sum(len(names) for names in ordered[REASONS:])
    return [*out, f"{rest} more files for {len(ordered) - REASONS} other reasons"] if rest else out


def _images(index: Index) -> str:
    source = index.source
    # Images as width x height; volumes as left-right x back-front x feet-head, as the config counts their sides.
    order = slice(None) if len(index.canvas) == 3 else slice(None, None, -1)
    low, high = (" x ".join(map(str, ends[order].tolist())) for ends in (index.sizes.min(0), index.sizes.max(0)))
    size = high if low == high else f"{low} to {high}"
    unit = "voxels" if len(index.canvas) == 3 else "pixels"
    kinds = f" ({_counts(Counter(source.modalities))})" if source.modalities else ""
    return f"{len(index)}{kinds}, {size} {unit}"


def _splits(index: Index, indices: Mapping[str, np.ndarray] | None) -> str:
    source = index.source
    if indices is not None:
        text = _counts({name: len(numbers) for name, numbers in indices.items()})
    elif source.splits is not None:
        text = _counts(Counter(split or "no split" for split in source.splits))
    else:
        text = "none are named: every image is used"
    unused = {name: n for name, n in source.unused.items() if name not in (indices or ())}
    return text + (f"; not used: {_counts(unused)}" if unused else "")


def _patients(groups: Sequence[str] | None) -> str:
    known = [group for group in groups or [] if group]
    if not known:
        return "not known, so every image counts as a patient (a CSV column `group`, or config.data.group_pattern)"
    sizes = Counter(known).values()
    each = f"{min(sizes)}" if min(sizes) == max(sizes) else f"{min(sizes)} to {max(sizes)}"
    unknown = len(groups or []) - len(known)
    alone = f"; {unknown} images without a patient count as one each" if unknown else ""
    return f"{len(sizes)}, {each} image{'' if each == '1' else 's'} each{alone}"


def _in_several_splits(source: Source, indices: Mapping[str, np.ndarray] | None) -> str:
    """A warning of patients that are trained on and tested on; "" if there are none."""
    if source.groups is None:
        return ""
    split_of = list(source.splits or [""] * len(source))
    for name, numbers in (indices or {}).items():
        for i in numbers:
            split_of[i] = name
    of_patient: dict[str, set[str]] = {}
    for group, split in zip(source.groups, split_of, strict=True):
        if group and split in JUDGED:
            of_patient.setdefault(group, set()).add(split)
    shared = {group: found for group, found in of_patient.items() if len(found) > 1}
    if not shared:
        return ""
    first = next(iter(shared))
    return (
        f"; warning: {len(shared)} of them in several splits, the first '{first}' "
        f"({', '.join(name for name in JUDGED if name in shared[first])}): results on the test images will be too good"
    )


def _counts(counts: Mapping[str, int]) -> str:
    parts = [f"{name or 'no name'} {count}" for name, count in list(counts.items())[:SHOWN]]
    rest = len(counts) - SHOWN
    return ", ".join(parts) + (f" and {rest} more" if rest > 0 else "")


def _wrapped(text: str, width: int) -> list[str]:
    import textwrap

    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
