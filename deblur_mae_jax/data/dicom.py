"""2-D images from DICOM files: ultrasound pictures and clips, radiographs, slices.

No identifier reaches what a run writes: images, patients and files have keyed hashes for names (`data/privacy.py`).
"""

from __future__ import annotations

import dataclasses
import filecmp
import os
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deblur_mae_jax.data import dicom_file, dicom_patients, dicom_windows, listing, masks, privacy, raster
from deblur_mae_jax.data import table as tables
from deblur_mae_jax.data.decode import EXTENSIONS
from deblur_mae_jax.data.dicom_file import Header
from deblur_mae_jax.data.dicom_labels import Labels
from deblur_mae_jax.data.dicom_pixels import FrameReader
from deblur_mae_jax.data.grid import Grid, enlarged, save_image
from deblur_mae_jax.data.image_files import mask_file_of, stamp_of
from deblur_mae_jax.data.listing import File
from deblur_mae_jax.data.source import BadImage, Skipped, Source
from deblur_mae_jax.errors import UserError, unknown

AXES = 2  # of its images; with a network for volumes, `data.name=dicom` reads series (dicom_volumes.py)
READS = ("columns", "labels")  # fields of config.data that say what the images are

CROPS = ("auto", "regions", "none")
ALLOWED = "used by config.data.allow_burned_in"
BURNED_IN = (
    "the header says that text is burned in (BurnedInAnnotation YES), and no ultrasound region cuts it away: allow it "
    "with --config.data.allow_burned_in=True"
)
COPY = "a copy of a picture that is read already"
SAME_UID = "it has the SOPInstanceUID of a picture that is read already, and other contents"
# Header, number of the frame, patient, row of the CSV.
Kept = tuple[Header, int, str, dict[str, str]]


@dataclasses.dataclass(frozen=True)
class Frames:
    """Read a list of frames.

    headers: header of the file of each image.
    numbers: number of the frame in its file.
    mask_paths: mask files of each image; () if it has no mask.
    mask_file: how they are read.
    min_side: shortest side that is accepted, pixels.
    """

    headers: list[Header]
    numbers: list[int]
    reader: FrameReader
    max_side: int
    mask_paths: list[tuple[str, ...]]
    mask_file: masks.MaskFile
    min_side: int = 1

    def read(self, index: int) -> np.ndarray:
        """uint8 `(H, W, C)`."""
        return self.examine(index)[0]

    def examine(self, index: int) -> tuple[np.ndarray, list[str]]:
        """`read`, and the assumptions that were made."""
        pixels, notes = self.reader.read(self.headers[index], self.numbers[index])
        height, width = self._shrunk(*pixels.shape[:2])
        if min(height, width) < self.min_side:
            raise BadImage(f"{width} x {height} pixels after cropping, under data.min_side={self.min_side}")
        if (height, width) != pixels.shape[:2]:
            image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
            pixels = np.asarray(image.resize((width, height), Image.Resampling.LANCZOS))
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        return pixels, notes

    def _shrunk(self, height: int, width: int) -> tuple[int, int]:
        scale = self.max_side / max(height, width) if self.max_side else 1.0
        return (height, width) if scale >= 1 else (max(1, round(height * scale)), max(1, round(width * scale)))

    def mask(self, index: int) -> np.ndarray:
        """The classes of the mask on the pixels of `read`, uint8 `(H, W)`. Raises `BadImage`."""
        return self.examine_mask(index)[0]

    def examine_mask(self, index: int) -> tuple[np.ndarray, list[str]]:
        """`mask`, and the assumptions that were made. The file has the pixels of the whole picture, before a crop."""
        if not self.mask_paths[index]:
            raise BadImage("it has no mask")
        header = self.headers[index]
        picture = raster.Header(header.columns, header.rows, 1, 1, False, False)
        pairs = []
        for path in map(Path, self.mask_paths[index]):
            try:
                pairs.append(self.mask_file.read(path, picture))
            except BadImage as error:  # the name of the file may be that of a patient
                raise BadImage(str(error).replace(f" '{path.name}'", "")) from None
        whole = masks.join([mask for mask, _ in pairs])
        box = self.reader.box(header)
        cut = whole if box is None else whole[box[1] : box[3], box[0] : box[2]]
        height, width = self._shrunk(*cut.shape)
        shrunk = np.asarray(Image.fromarray(cut).resize((width, height), Image.Resampling.NEAREST))
        return shrunk, list(dict.fromkeys(note for _, notes in pairs for note in notes))

    def mask_stamp(self, index: int) -> list[Any]:
        """Hashed name, size and modification time of every mask file."""
        return [[file_name(path), stamp_of(path)] for path in self.mask_paths[index]]

    def mask_fields(self) -> dict[str, Any]:
        """The mask fields of a `Source`. Empty if no image has a mask."""
        if not any(self.mask_paths):
            return {}
        return {
            "masks": self.mask,
            "examine_mask": self.examine_mask,
            "masked": [bool(paths) for paths in self.mask_paths],
            "mask_stamp": self.mask_stamp,
            "mask_names": list(self.mask_file.values.names) if self.mask_file.values else None,
        }

    def color_frac(self, index: int) -> float:
        """The share of the pixels that have colour, such as Doppler. Raises `BadImage`."""
        return self.reader.color_frac(self.headers[index], self.numbers[index])

    def header(self, index: int) -> tuple[int, int]:
        """(H, W), from the header alone if nothing has to be found in the pixels."""
        header = self.headers[index]
        if self.reader.crop == "auto" and header.box is None and header.modality == "US":
            return self.read(index).shape[:2]
        box = self.reader.box(header) or (0, 0, header.columns, header.rows)
        return self._shrunk(box[3] - box[1], box[2] - box[0])

    def stamp(self, index: int) -> list[Any] | None:
        """Size and modification time of the file."""
        return stamp_of(self.headers[index].path)

    def grid(self, index: int) -> Grid:
        """The grid of the image as read, with the pixel size in mm if the header states it."""
        header = self.headers[index]
        spacing, unit = (header.spacing, "mm") if header.spacing else ((1.0, 1.0), "px")
        height = self.header(index)[0]
        box = self.reader.box(header) or (0, 0, header.columns, header.rows)
        shrunk = (box[3] - box[1]) / height if header.spacing else 1.0
        spacing = tuple(s * shrunk for s in spacing)
        return Grid(spacing, unit, lambda: self.mask(index), lambda labels: labels, save_image)

    def whole(self, index: int) -> Callable[[np.ndarray], np.ndarray]:
        """A label map of the picture as read on all pixels of the file: enlarged, and put where it was cut out."""
        header = self.headers[index]
        x0, y0, x1, y1 = self.reader.box(header) or (0, 0, header.columns, header.rows)

        def of(labels: np.ndarray) -> np.ndarray:
            out = np.zeros((header.rows, header.columns), labels.dtype)
            out[y0:y1, x0:x1] = enlarged(labels, (y1 - y0, x1 - x0))
            return out

        return of


def _whole_patients(kept: list[Kept], stated: dict[str, set[str]], notes: list[str]) -> list[Kept]:
    """Pictures whose row states no patient, beside others of their PatientID that do, get the patient of those."""
    one = {patient: next(iter(groups)) for patient, groups in stated.items() if len(groups) == 1}
    out = [(header, number, one.get(group, group), row) for header, number, group, row in kept]
    moved = sum(before[2] != after[2] for before, after in zip(kept, out, strict=True))
    if moved:
        notes.append(
            f"{moved} pictures have no patient in config.data.labels, and others of their PatientID have one: it is "
            "theirs too"
        )
    return out


def source(data, channels: int) -> Source:
    """Every picture in the DICOM files below `data.root`, in the order of their paths.

    Clips give the frames that `data.frames` chooses, all in one group; frames that are nearly equal are dropped when
    the images are checked. Labels, splits and patients may come from the CSV `data.labels`, by SOPInstanceUID,
    SeriesInstanceUID, StudyInstanceUID, PatientID or path. Raises `UserError`.
    """
    root = listing.existing_root(data.root)
    if data.crop not in CROPS:
        raise unknown("config.data.crop", data.crop, CROPS)
    headers, files, skipped = read_headers(root, int(data.num_threads))
    dicom_file.chosen_frames(data.frames, None)
    dicom_windows.window_of(data.window)
    reader = FrameReader(channels, int(data.max_pixels), data.window, data.crop)
    labels = Labels.of(data.labels, data.columns, data.split, root) if data.labels else None
    notes: list[str] = []
    groups = dicom_patients.patients(headers, notes)
    kept: list[Kept] = []
    stated = dict[str, set[str]]()  # the patients of the CSV for each PatientID
    for header, file, group in zip(headers, files, groups, strict=True):
        own_name = name_of(header, file)
        if header.burned_in and not data.allow_burned_in and (not header.is_cut or data.crop == "none"):
            skipped.append(Skipped(own_name, BURNED_IN))
            continue
        row = labels.row(header, file.path) if labels is not None else {}
        if row is None:
            continue  # of another split
        own = labels.patient(row) if labels is not None else ""
        if own:
            stated.setdefault(group, set()).add(own)
        group = own or group
        for number in dicom_file.chosen_frames(data.frames, header):
            kept.append((header, number, group, row))
    kept = _whole_patients(kept, stated, notes)
    notes += [*_said(data, headers, {header.path: header for header, *_ in kept}.values(), labels), *facts(headers)]
    frames = Frames(
        [k[0] for k in kept], [k[1] for k in kept], reader, int(data.max_side), _masks(data, kept, notes),
        mask_file_of(data), int(data.min_side),
    )  # fmt: skip
    names: list[str] = [name_of(header, None) + (f"_{n:05d}" if header.frames > 1 else "") for header, n, *_ in kept]
    return Source(
        names,
        frames.read,
        frames.header,
        frames.stamp,
        labels=[row.get("label", "") for *_, row in kept] if labels is not None and labels.has("label") else None,
        groups=[group for _, _, group, _ in kept],
        **frames.mask_fields(),
        grids=frames.grid,
        whole=frames.whole,
        skipped=skipped,
        examine=frames.examine,
        notes=notes,
        splits=[row.get("split", "") for *_, row in kept] if labels is not None and labels.has("split") else None,
        unused=labels.unused if labels is not None else {},
        keys=[privacy.digest(header.sop or header.path, str(n)) for header, n, *_ in kept],
        scanners=[f"{header.manufacturer} {header.model}".strip() for header, *_ in kept],
        color_frac=frames.color_frac,
        clips=[name_of(header, None) if header.frames > 1 else "" for header, *_ in kept],
    )


def _said(data, headers: list[Header], used: Iterable[Header], labels: Labels | None) -> list[str]:
    """What was assumed about labels, burned-in text, and the times of clips."""
    lines = list(labels.notes()) if labels is not None else []
    burned = sum(header.burned_in for header in used)
    if burned:
        how = ALLOWED if data.allow_burned_in else "cropped to their regions"
        lines.append(f"files whose header says that text is burned in: {burned} ({how})")
    untimed = sum(header.frames > 1 and not header.frame_seconds for header in headers)
    if untimed and data.frames.startswith("every"):
        lines.append(f"clips that do not state the time between frames: {untimed} (25 frames per second are assumed)")
    return lines


def _masks(data, kept: list[Kept], notes: list[str]) -> list[tuple[str, ...]]:
    """The mask files of every image, from the column `mask` of the CSV. Adds to `notes`."""
    if not data.labels:
        return [()] * len(kept)
    finder = tables.Finder(Path(data.labels).expanduser().parent, sorted(EXTENSIONS))
    out: list[tuple[str, ...]] = []
    of_clips = set()
    for header, _, _, row in kept:
        cells = [part.strip() for part in row.get("mask", "").split(";") if part.strip()]
        if cells and header.frames > 1:
            of_clips.add(header.path)
            cells = []
        out.append(tuple(finder.path(cell) for cell in cells))
    if of_clips:
        notes.append(f"clips with a mask in config.data.labels: {len(of_clips)} (not used: it shows one frame only)")
    return out


def read_headers(
    root: Path, num_threads: int, segmentations: list[str] | None = None
) -> tuple[list[Header], list[File], list[Skipped]]:
    """The headers of all pictures below a folder, their files, and what is left out, by hashed names.

    segmentations: collects the paths of DICOM segmentations, which are then not left out.
    """
    dicom_file.pydicom()
    walked = listing.walk(root) if root.is_dir() else None
    found = walked.files if walked is not None else [File(str(root), root.name)]
    # A name or a path may identify a patient, so what is left out is listed by its hash too.
    skipped = [Skipped(file_name(s.name), s.reason) for s in walked.skipped] if walked is not None else []

    def one(file: File) -> Header | str:
        if why := dicom_file.why_not(file.path):
            return why
        try:
            return dicom_file.header(file.path)
        except BadImage as error:
            return str(error)
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"

    headers, files = [], []
    seen: dict[str, str] = {}
    with ThreadPoolExecutor(max(1, num_threads)) as pool:
        for file, result in zip(found, pool.map(one, found), strict=True):
            if segmentations is not None and isinstance(result, str) and result.startswith("a segmentation"):
                segmentations.append(file.path)
            elif isinstance(result, str):
                damaged = result.startswith(("damaged", "cannot be read", "empty"))
                skipped.append(Skipped(file_name(file.name), result, damaged))
            elif result.sop and result.sop in seen:
                same = _equal(file.path, seen[result.sop])
                skipped.append(Skipped(file_name(file.name), COPY if same else SAME_UID))
            else:
                seen[result.sop] = file.path
                headers.append(result)
                files.append(file)
    return headers, files, skipped


def _equal(one: str, other: str) -> bool:
    try:
        return filecmp.cmp(one, other, shallow=False)
    except OSError:
        return False


def file_name(name: str) -> str:
    """The name under which a file is listed: a hash of its path."""
    return f"file_{privacy.pseudonym('file', name)}"


def name_of(header: Header, file: File | None) -> str:
    """The name of a picture: a hash of its SOPInstanceUID, or of its path without one."""
    return f"image_{privacy.pseudonym('sop', header.sop or (file.path if file else header.path))}"


def facts(headers: list[Header]) -> list[str]:
    """What the set consists of, from fields that identify nobody."""

    def count(values: Iterable[str]) -> str:
        return ", ".join(f"{value or 'not stated'} {n}" for value, n in Counter(values).most_common(6))

    if not headers:
        return []
    clips = [header.frames for header in headers if header.frames > 1]
    out = [
        f"DICOM files: {len(headers)} ({count(h.modality for h in headers)}), studies: "
        f"{len({h.study for h in headers})}, series: {len({h.series for h in headers})}",
        f"scanners: {count(f'{h.manufacturer} {h.model}'.strip() for h in headers)}",
        f"transfer syntaxes: {count(h.syntax for h in headers)}",
    ]
    if clips:
        out.append(f"clips: {len(clips)}, frames: {sum(clips)}, of which config.data.frames chooses")
    sizes = [size for h in headers for size in h.spacing]
    if sizes:
        known = sum(bool(h.spacing) for h in headers)
        out.append(
            f"size of a pixel: {min(sizes):.3g} to {max(sizes):.3g} mm, stated by {known} of {len(headers)} files"
        )
    regions = [h for h in headers if h.modality == "US"]
    if regions:
        out.append(
            f"ultrasound files that state their regions: {sum(h.box is not None for h in regions)} of {len(regions)} "
            "(text inside a region remains)"
        )
    unread = Counter(name for h in headers for name in h.unread)
    if unread:
        listed = ", ".join(f"{name} of {count} files" for name, count in sorted(unread.items()))
        out.append(f"fields that are not used because their values cannot be understood: {listed}")
    unused = sum(h.unused_regions > 0 for h in headers)
    if unused:
        out.append(f"files with regions that are empty or outside of the picture: {unused} (these are not used)")
    return out


def most_are_dicom(folder: Path) -> bool:
    """Whether most files of a folder are DICOM, judged by the first 200."""
    seen = found = 0
    for place, folders, names in os.walk(folder):
        folders.sort()
        folders[:] = [name for name in folders if not listing.is_system(name)]
        for name in sorted(n for n in names if not listing.is_system(n)):
            path = os.path.join(place, name)
            if not os.path.isfile(path):  # a pipe, or a link to nothing
                continue
            seen += 1
            found += dicom_file.is_dicom(path)
            if seen == 200:
                return found > seen / 2
    return found > seen / 2


def need_root(data) -> Path:
    """The folder of a DICOM set. Raises `UserError`."""
    root = listing.existing_root(str(data.root))
    if not root.is_dir():
        raise UserError(f"config.data.root: '{root}' is a file; name the folder of the DICOM files")
    return root
