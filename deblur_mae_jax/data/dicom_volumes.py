"""Volumes from the CT and MR series of a DICOM folder, with label maps as NIfTI files or DICOM segmentations."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.data import dicom, dicom_file, dicom_patients, dicom_series, dicom_windows, privacy, volume_file
from deblur_mae_jax.data import table as tables
from deblur_mae_jax.data.dicom_labels import Labels
from deblur_mae_jax.data.dicom_series import Series
from deblur_mae_jax.data.image_files import stamp_of
from deblur_mae_jax.data.masks import parse
from deblur_mae_jax.data.nifti import check_spacing, source_of
from deblur_mae_jax.data.source import BadImage, Skipped, Source
from deblur_mae_jax.data.volume_file import VolumeFile
from deblur_mae_jax.data.volume_reader import Volumes
from deblur_mae_jax.errors import UserError, pair

AXES = 3  # of its images
READS = ("columns", "labels")  # fields of config.data that say what the images are


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """A DICOM segmentation of a series, read by highdicom.

    path: its file.
    series: the series on whose grid it is placed.
    """

    path: str
    series: Series

    def stamp(self) -> Any:
        """Size and modification time."""
        return stamp_of(self.path)

    def open(self, max_voxels: int) -> VolumeFile:
        """The label map on the grid of the series. Raises `BadImage`."""
        like = self.series.open(max_voxels)
        return dataclasses.replace(like, notes=[], _load=lambda: self._labels(like))

    def _labels(self, like: VolumeFile) -> np.ndarray:
        highdicom = need_highdicom()
        try:
            volume = highdicom.seg.segread(self.path).get_volume(combine_segments=True)
            array, affine = np.asarray(volume.array), np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.asarray(volume.affine)
        except Exception as error:  # overlapping segments, damaged frames, missing geometry
            raise BadImage(f"its segmentation cannot be read: {_why_unread(self.path, error)}") from error
        out = np.zeros(like.shape, np.uint8)
        where = np.argwhere(array)
        if not len(where):
            return out
        to_series = np.linalg.inv(like.affine) @ affine
        _require_same_size(to_series, like, _slice_size(self.path), len(array))
        places = where @ to_series[:3, :3].T + to_series[:3, 3]
        nearest = np.rint(places).astype(int)
        outside = (nearest < 0) | (nearest >= np.array(like.shape))
        if np.abs(places - nearest).max() > 0.1 or outside.any():
            raise BadImage("its segmentation is not on the voxels of its series")
        if array.max() > 255:
            raise BadImage(f"its segmentation has segment {int(array.max())}; the largest that is read is 255")
        out[tuple(nearest.T)] = array[tuple(where.T)]
        return out


def _why_unread(path: str, error: Exception) -> str:
    """Why a segmentation cannot be placed on its series."""
    if str(dicom_file.dataset(path).get("SegmentationType", "")).startswith("FRACTIONAL"):
        return "it is fractional, and only binary ones and label maps are read"
    if "overlap" in str(error).lower():
        return "its segments overlap"
    return f"its frames are not evenly spaced, or damaged ({type(error).__name__})"


def _slice_size(path: str) -> float:
    """What a segmentation states of the distance of its frames, or their thickness, mm; 0 if it is silent."""
    values = dicom_windows.group(dicom_file.dataset(path), 0, "PixelMeasuresSequence")
    return float(values.get("SpacingBetweenSlices", None) or values.get("SliceThickness", None) or 0)


def _require_same_size(to_series: np.ndarray, like: VolumeFile, slice_size: float, frames: int) -> None:
    """Raise `BadImage` if the voxels of a segmentation have another size than those of its series.

    Each would set one voxel of the series, and leave those between them empty.

    to_series: from voxels of the segmentation (frame, row, column) to voxels of the series.
    slice_size: stated distance of the frames, mm. A file may leave out empty frames, so that the others are further
        apart.
    frames: number of frames of the segmentation.
    """
    steps = np.linalg.norm(to_series[:3, :3], axis=0)
    step = like.zooms[2]
    # Of a single frame, highdicom makes up a distance to the next one.
    if frames == 1 or (slice_size and abs(slice_size - step) <= 0.1 * step):
        steps[0] = 1.0
    if np.abs(steps - 1).max() > 0.05:
        own = like.zooms[::-1] * steps
        listed = lambda sizes: " x ".join(f"{size:.3g}" for size in sizes)
        raise BadImage(
            f"its segmentation has voxels of {listed(own)} mm, its series of {listed(like.zooms[::-1])} mm: resample it"
        )


def need_highdicom() -> Any:
    """The module. Raises `UserError` that says what to install."""
    try:
        import highdicom
    except ImportError as error:
        raise UserError(f"DICOM segmentations need highdicom, which is not installed: {dicom_file.EXTRA}") from error
    return highdicom


def source(data, channels: int) -> Source:
    """Every CT and MR series below `data.root` that is a volume.

    Slices are grouped by series, orientation, matrix and acquisition, and sorted by position. The modality is that of
    the header. Masks are DICOM segmentations that name the series, or NIfTI files in the column `mask` of
    `data.labels`. Raises `UserError`.
    """
    if channels != 1:
        raise UserError(f"config.model.in_chans={channels}: volumes have one channel")
    low, high = pair("config.data.ct_window", data.ct_window, "(-1000.0, 1000.0)")
    if not low < high:
        raise UserError(f"config.data.ct_window=({low:g}, {high:g}) must be (low, high)")
    check_spacing(data.spacing)
    root = dicom.need_root(data)
    segmentations: list[str] = []
    headers, _, skipped = dicom.read_headers(root, int(data.num_threads), segmentations)
    notes: list[str] = []
    groups = dict(zip((h.path for h in headers), dicom_patients.patients(headers, notes), strict=True))
    headers = _without_text(headers, bool(data.allow_burned_in), skipped, notes)
    series, left_out = dicom_series.build(headers, groups)
    skipped += _by_series(left_out)
    if not series:
        what = f"; the first is left out: {skipped[0].reason}" if skipped else ""
        kinds = ", ".join(f"{kind} {count}" for kind, count in Counter(h.modality for h in headers).most_common())
        seen = f" ({kinds} files)" if kinds else ""
        raise UserError(f"config.data.root: no CT or MR series in '{root}'{seen} is a volume{what}")
    labels = Labels.of(data.labels, data.columns, data.split, root) if data.labels else None
    finder = tables.Finder(Path(data.labels).expanduser().parent, volume_file.SUFFIXES) if data.labels else None
    by_series = _segmentations(segmentations, root, series, skipped, notes)
    kept: list[tuple[Series, dict[str, str], tuple[Any, ...]]] = []
    for one in sorted(series, key=lambda s: s.path):
        row = labels.row_of_volume(one, [part.path for part in one.slices]) if labels is not None else {}
        if row is None:
            continue  # of another split
        own = {part.sop for part in one.slices}
        masks: tuple[Any, ...] = tuple(
            Segmentation(path, one) for path, shown in by_series.get(one.uid, {}).items() if not shown or shown & own
        )
        if row.get("mask") and finder is not None:
            masks = tuple(finder.path(part.strip()) for part in row["mask"].split(";") if part.strip())
        kept.append((one, row, masks))
    notes += [*(labels.notes() if labels is not None else []), *_facts(headers, series)]
    volumes = Volumes(
        [one for one, _, _ in kept], [masks for *_, masks in kept], [one.modality for one, *_ in kept],
        tuple(float(s) for s in data.spacing), (float(low), float(high)), int(data.max_pixels), str(data.decoded),
        parse(data.mask_values),
    )  # fmt: skip
    return source_of(
        volumes,
        names=[name_of(one) for one, *_ in kept],
        keys=[privacy.digest(one.uid, *_first_place(one)) for one, *_ in kept],
        labels=[row.get("label", "") for _, row, _ in kept],
        groups=_groups(kept, groups, labels, notes),
        splits=[row.get("split", "") for _, row, _ in kept],
        skipped=skipped,
        notes=notes,
        unused=labels.unused if labels is not None else {},
    )


def _without_text(
    headers: list[dicom_file.Header], allowed: bool, skipped: list[Skipped], notes: list[str]
) -> list[dicom_file.Header]:
    """The headers without those of series that hold slices with text in their pixels, unless the user allows them."""
    burned = [header for header in headers if header.burned_in]
    if burned and allowed:
        notes.append(f"slices whose header says that text is burned in: {len(burned)} ({dicom.ALLOWED})")
        return headers
    skipped += _by_series([dicom_series.LeftOut(h.path, h.series, dicom.BURNED_IN) for h in burned])
    marked = {(header.study, header.series) for header in burned}
    return [header for header in headers if (header.study, header.series) not in marked]


def _groups(
    kept: list[tuple[Series, dict[str, str], tuple[Any, ...]]],
    headers: dict[str, str],
    labels: Labels | None,
    notes: list[str],
) -> list[str]:
    """The patient of every volume: of the CSV, also by another series of its PatientID; else of the header.

    headers: the patient of every file by its header.
    """
    if labels is None:
        return [headers[one.path] for one, *_ in kept]
    named = [name and f"patient_{name}" for name in (labels.patient(row) for _, row, _ in kept)]
    stated = defaultdict[str, set[str]](set)
    for name, (one, *_) in zip(named, kept, strict=True):
        stated[headers[one.path]] |= {name} - {""}
    same = {patient: next(iter(names)) for patient, names in stated.items() if len(names) == 1}
    out = [name or same.get(headers[one.path], headers[one.path]) for name, (one, *_) in zip(named, kept, strict=True)]
    moved = sum(not name and headers[one.path] in same for name, (one, *_) in zip(named, kept, strict=True))
    if moved:
        notes.append(
            f"{moved} series have no patient in config.data.labels, and others of their PatientID have one: it is "
            "theirs too"
        )
    return out


def _first_place(one: Series) -> tuple[str, ...]:
    """What tells the volumes of one series apart."""
    first = one.slices[0]
    return (one.patient, repr(first.orientation), repr(first.shape), repr(first.part))


OTHER_NUMBER = (
    "the label of its segment {} has another number in most segmentations: classes go by these numbers, so number the "
    "segments alike in all files; its series has no mask"
)


def name_of(one: Series) -> str:
    """The name of a volume: a hash."""
    return f"series_{privacy.pseudonym('series', one.uid, *_first_place(one))}"


def _by_series(left_out: list[dicom_series.LeftOut]) -> list[Skipped]:
    """One line for every series and reason."""
    counts = Counter((part.uid, part.reason) for part in left_out)
    return [Skipped(f"series_{privacy.pseudonym('series', uid)}", reason) for (uid, reason) in counts]


def _segmentations(
    paths: list[str], root: Path, volumes: list[Series], skipped: list[Skipped], notes: list[str]
) -> dict[str, dict[str, set[str]]]:
    """Segmentation files by the UID of the series that they segment, each with the slices that it names.

    Those that cannot be used are added to `skipped`. A file that names no slices is of the whole series.

    volumes: the series that are volumes.
    """
    series, slices = {one.uid for one in volumes}, {part.sop for one in volumes for part in one.slices}
    out: dict[str, dict[str, set[str]]] = defaultdict(dict)
    names: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))

    def leave_out(path: str, reason: str) -> None:
        skipped.append(Skipped(dicom.file_name(Path(path).relative_to(root).as_posix()), reason))

    for path in paths:
        try:
            values = dicom_file.dataset(path)
            shown = _referenced(values)
            segments = [(int(s.SegmentNumber), str(s.get("SegmentLabel", ""))) for s in values.SegmentSequence]
        except Exception as error:  # headers are damaged in as many ways as there are files
            kind = type(error).__name__
            leave_out(path, f"a segmentation whose header cannot be read ({kind}); its series has no mask")
            continue
        used = {uid: own for uid, own in shown.items() if uid in series and (not own or own & slices)}
        if not used:
            of = "a series that is no volume here" if shown else "no stated series"
            of = "slices that are not in its series here" if shown.keys() & series else of
            leave_out(path, f"a segmentation of {of}")
        for uid, own in used.items():
            out[uid][path] = own
            for number, label in segments:
                names[uid][number].add(label)
    for uid, numbers in names.items():
        unclear = sorted(number for number, labels in numbers.items() if len(labels) > 1)
        if unclear:  # "Liver" of one file and "Spleen" of another would become one class
            for path in out.pop(uid):
                leave_out(path, f"one of several segmentations of a series that name segment {unclear[0]} differently")
    notes += _leave_out_other_numberings(out, names, leave_out)
    return out


def _referenced(values: Any) -> dict[str, set[str]]:
    """The series that a segmentation names, each with its slices; an empty set if it names none of them."""
    out: dict[str, set[str]] = defaultdict(set)
    for series in values.get("ReferencedSeriesSequence", None) or ():
        instances = series.get("ReferencedInstanceSequence", None) or ()
        out[str(series.get("SeriesInstanceUID", ""))] |= {
            str(instance.get("ReferencedSOPInstanceUID", "")) for instance in instances
        }
    return out


def _leave_out_other_numberings(
    masks: dict[str, dict[str, set[str]]], names: dict[str, dict[int, set[str]]], leave_out: Callable[[str, str], None]
) -> list[str]:
    """Leave out the segmentations that give a label another number than most do. Returns notes.

    Classes go by these numbers: "1 Liver, 2 Spleen" of one series and "1 Spleen, 2 Liver" of another would be mixed up.
    Different labels of one number that have no other number, such as "lesion" and "tumour", are one class, with a note.

    masks: paths by series.
    names: by series, the labels of each segment number.
    """
    labels = {
        uid: {number: " ".join(min(found).split()).casefold() for number, found in names[uid].items()} for uid in masks
    }
    counts: dict[str, Counter[int]] = defaultdict(Counter)
    for own in labels.values():
        for number, label in own.items():
            counts[label][number] += 1
    usual = {label: min(found, key=lambda n: (-found[n], n)) for label, found in counts.items() if label}
    for uid, own in sorted(labels.items()):
        other = [number for number, label in sorted(own.items()) if label and usual[label] != number]
        if other:
            for path in masks.pop(uid):
                leave_out(path, OTHER_NUMBER.format(other[0]))
    left: dict[int, set[str]] = defaultdict(set)
    for uid in masks:
        for number, label in labels[uid].items():
            left[number].add(label)
    return [
        f"segment {number} has {len(found)} different names in the segmentations, and is taken as one class"
        for number, found in sorted(left.items()) if len(found) > 1
    ]  # fmt: skip


def _facts(headers: list[dicom_file.Header], series: list[Series]) -> list[str]:
    lines = [line for line in dicom.facts(headers) if not line.startswith(("clips:", "transfer"))]
    planes = Counter(_plane(one) for one in series)
    sizes = sorted({len(one.slices) for one in series})
    return [
        *lines,
        f"volumes: {len(series)}, slices of a volume: {sizes[0]} to {sizes[-1]}, planes: "
        + ", ".join(f"{name} {count}" for name, count in planes.most_common()),
    ]


def _plane(one: Series) -> str:
    """The anatomical plane of the slices."""
    first = one.slices[0]
    normal = np.abs(np.cross(first.orientation[:3], first.orientation[3:]))
    name = ("sagittal", "coronal", "axial")[int(normal.argmax())]
    return name if normal.max() > 0.99 else f"oblique, nearly {name}"
