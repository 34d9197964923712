"""Put the slices of CT and MR series together to volumes, by their positions and never by their names or numbers."""

from __future__ import annotations

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from deblur_mae_jax.data import dicom_file, dicom_pixels, dicom_windows
from deblur_mae_jax.data.image_files import stamp_of
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.data.volume_file import VolumeFile
from deblur_mae_jax.errors import UserError

MIN_SLICES = 8
# Largest difference of a step between slices from the median step, as a share of it.
GAP = 0.1
# Largest angle between the normal of the slices and the line of their positions, degrees.
TILT = 0.5
# Largest distance of a slice from the line between the first and the last one, mm.
ASIDE = 1.0
# Largest distance of a slice along that line from its place if all were equally far apart, as a share of a step; from
# a fifth of it on there is a note.
ALONG = 0.5
SAME_PLACE = 0.01  # mm
# Largest difference of direction cosines, and of pixel sizes as a share, within a volume.
SAME_DIRECTION, SAME_SIZE = 2e-3, 1e-3
# What tells repeated acquisitions of one place apart. The first of them say that the contrast differs.
CONTRAST = (
    "EchoNumbers", "EchoTime", "InversionTime", "DiffusionBValue", "TemporalPositionIdentifier", "StackID", "ImageType",
    "ComplexImageComponent", "ConvolutionKernel",
)  # fmt: skip
TELLS = (*CONTRAST, "AcquisitionNumber", "TriggerTime", "AcquisitionTime")
# Where enhanced files keep them: the group of a frame, and the name of the field there.
IN_GROUPS = {
    "EchoTime": ("MREchoSequence", "EffectiveEchoTime"), "DiffusionBValue": ("MRDiffusionSequence", "DiffusionBValue"),
    "StackID": ("FrameContentSequence", "StackID"),
    "TemporalPositionIdentifier": ("FrameContentSequence", "TemporalPositionIndex"),
    "AcquisitionNumber": ("FrameContentSequence", "FrameAcquisitionNumber"),
    "ComplexImageComponent": ("MRImageFrameTypeSequence", "ComplexImageComponent"),
    "ConvolutionKernel": ("CTReconstructionSequence", "ConvolutionKernel"),
}  # fmt: skip
UNEVEN = "slices are read as evenly spaced; one of them is then {:.2g} mm away from its position"
PADDED = "voxels with PixelPaddingValue, which are no measurements, are read as {}"
JOINED = "slices of {} acquisitions are put together to one volume, by their positions"
INVERTED = "MR stored for an inverted display (MONOCHROME1): its brightness is turned round"
# What RescaleType says of Hounsfield units; US is "unspecified".
HOUNSFIELD = ("", "HU", "US", "HU_MOD")
MODALITIES = {"CT": "ct", "MR": "mr"}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice: a file, or a frame of a multi-frame file.

    position, orientation: of the patient (LPS), mm.
    spacing: (row, column), mm.
    slope, intercept: from stored values to Hounsfield units, or to MR intensities.
    units: whether the file states the intercept.
    part: the values of `TELLS`, "" for those that are not stated.
    """

    path: str
    sop: str
    frame: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    shape: tuple[int, int]
    slope: float
    intercept: float
    units: bool
    part: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Series:
    """A volume of one modality.

    uid, study, patient: identifiers, in memory only.
    slices: in the order of their positions along the normal.
    notes: what was assumed.
    """

    uid: str
    study: str
    patient: str
    modality: str
    slices: tuple[Slice, ...]
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The file of the first slice."""
        return self.slices[0].path

    def stamp(self) -> Any:
        """Size and modification time of all its files."""
        return [stamp_of(path) for path in sorted({one.path for one in self.slices})]

    @property
    def step(self) -> np.ndarray:
        """From one slice to the next, mm (LPS)."""
        first, last = np.array(self.slices[0].position), np.array(self.slices[-1].position)
        return (last - first) / (len(self.slices) - 1)

    def affine(self) -> np.ndarray:
        """Voxel (column, row, slice) to mm in RAS."""
        first = self.slices[0]
        row, column = np.array(first.orientation[:3]), np.array(first.orientation[3:])
        out = np.eye(4)
        row, column = row / np.linalg.norm(row), column / np.linalg.norm(column)
        out[:3, 0], out[:3, 1] = row * first.spacing[1], column * first.spacing[0]
        out[:3, 2], out[:3, 3] = self.step, first.position
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ out

    def open(self, max_voxels: int) -> VolumeFile:
        """The volume, of which only the headers have been read. Raises `BadImage`."""
        rows, columns = self.slices[0].shape
        shape = (columns, rows, len(self.slices))
        if rows * columns * len(self.slices) > max_voxels:
            raise BadImage(f"{shape} voxels, over data.max_pixels={max_voxels}")
        affine = self.affine()
        zooms = tuple(float(z) for z in np.sqrt((affine[:3, :3] ** 2).sum(axis=0)))
        notes = list(self.notes)
        return VolumeFile(shape, affine, zooms, False, notes, lambda: self._voxels(notes))

    def _voxels(self, notes: list[str]) -> np.ndarray:
        """The voxels. What was assumed of them is added to `notes`."""
        planes, padded = [], []
        headers = {path: dicom_file.dataset(path) for path in {one.path for one in self.slices}}
        for one in self.slices:
            try:
                stored = dicom_pixels.stored(one.path, one.frame, headers[one.path])
                outside = dicom_windows.padding(stored, headers[one.path])
            except (BadImage, UserError):
                raise
            except Exception as error:  # decoders raise many kinds on damaged data
                raise dicom_pixels.not_decoded(error, headers[one.path]) from error
            if stored.shape != one.shape:
                raise BadImage(f"damaged: a slice has the shape {stored.shape}, its header says {one.shape}")
            planes.append(stored.T * np.float32(one.slope) + np.float32(one.intercept))
            padded.append(outside.T)
        if self.modality == "ct" and not self.slices[0].units:
            notes.append(dicom_windows.NO_INTERCEPT)
        if any(str(header.get("LossyImageCompression", "")) == "01" for header in headers.values()):
            notes.append(dicom_pixels.LOSSY)
        values, outside = np.stack(planes, axis=-1), np.stack(padded, axis=-1)
        kinds = {str(header.get("PhotometricInterpretation", "")) == "MONOCHROME1" for header in headers.values()}
        if self.modality == "mr" and True in kinds:
            if len(kinds) > 1:
                raise BadImage("some of its slices are stored for an inverted display (MONOCHROME1), and some are not")
            notes.append(INVERTED)
            measured = values if outside.all() else values[~outside]
            values = measured.max() - values  # from 0 up, as MR values are
        return self._without_padding(values, outside, notes)

    def _without_padding(self, values: np.ndarray, padded: np.ndarray, notes: list[str]) -> np.ndarray:
        """The voxels, with the smallest measured value (CT) or 0 (MR) where nothing was measured."""
        if not padded.any() or padded.all():
            return values
        fill = np.float32(values[~padded].min()) if self.modality == "ct" else np.float32(0)
        # Padding below all measured values is what a window makes of it anyway.
        if (values[padded] > fill).any() if self.modality == "ct" else (values[padded] != 0).any():
            notes.append(PADDED.format("the smallest value of the others" if self.modality == "ct" else "0"))
        return np.where(padded, fill, values)


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A series, or a part of one, that is no volume."""

    path: str
    uid: str
    reason: str


def slices_of(header: dicom_file.Header) -> list[Slice]:
    """The slices of a file. Raises `BadImage` if it has no positions, or is a localiser or derived picture."""
    values = dicom_file.dataset(header.path)
    try:
        kinds = {str(kind).upper() for kind in values.get("ImageType", None) or ()}
        if "LOCALIZER" in kinds:
            raise BadImage("a localiser")
        if "MOSAIC" in kinds:
            raise BadImage("a mosaic, which holds many slices in one picture: convert it with dcm2niix")
        if kinds & {"SCREEN SAVE", "MIP", "MINIP", "PROJECTION IMAGE"} or str(values.get("ConversionType", "") or ""):
            raise BadImage("a derived picture, such as a saved screen or a projection")
        if values.get("SamplesPerPixel", 1) != 1:
            raise BadImage("a colour picture in a series")
        if header.photometric not in ("MONOCHROME1", "MONOCHROME2", ""):
            raise BadImage(f"PhotometricInterpretation '{header.photometric}': its numbers are no measurements")
        if "PerFrameFunctionalGroupsSequence" in values:
            return _enhanced(header, values)
        if header.frames > 1:
            raise BadImage(f"{header.frames} frames without positions (PerFrameFunctionalGroupsSequence)")
        if "ImagePositionPatient" not in values or "ImageOrientationPatient" not in values:
            raise BadImage("it has no position in space (ImagePositionPatient)")
        if "PixelSpacing" not in values:
            raise BadImage("the size of its pixels is unknown (PixelSpacing)")
        return [_slice(header, 0, values)]
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(f"damaged: its geometry cannot be understood ({type(error).__name__})") from error


def _enhanced(header: dicom_file.Header, values: Any) -> list[Slice]:
    """The frames of an enhanced multi-frame file, whose geometry is in functional groups."""
    groups = len(values.PerFrameFunctionalGroupsSequence)
    if groups != header.frames:
        raise BadImage(f"damaged: {header.frames} frames, and positions of {groups} (PerFrameFunctionalGroupsSequence)")
    return [_slice(header, number, values) for number in range(groups)]


def _slice(header: dicom_file.Header, frame: int, values: Any) -> Slice:
    group = lambda name: dicom_windows.group(values, frame, name)
    numbers = lambda item, name: tuple(float(v) for v in item[name].value)
    position = numbers(group("PlanePositionSequence"), "ImagePositionPatient")
    orientation = numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient")
    spacing = numbers(group("PixelMeasuresSequence"), "PixelSpacing")
    if (len(position), len(orientation), len(spacing)) != (3, 6, 2):
        raise BadImage("damaged: its position, orientation or pixel size has another number of values than 3, 6 and 2")
    if not np.isfinite([*position, *orientation, *spacing]).all() or min(spacing) <= 0:
        raise BadImage("damaged: its position, orientation or pixel size is no number, or not above 0")
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    if abs(np.linalg.norm(row) - 1) > 0.01 or abs(np.linalg.norm(column) - 1) > 0.01 or abs(row @ column) > 0.01:
        raise BadImage("damaged: ImageOrientationPatient does not hold two unit vectors at a right angle")
    transform = group("PixelValueTransformationSequence")
    if transform.get("ModalityLUTSequence", None):
        raise BadImage("its values need a modality lookup table, which is not used for volumes")
    slope, intercept = dicom_windows.rescale(transform)
    units = str(transform.get("RescaleType", "") or "").strip().upper()
    if header.modality == "CT" and units not in HOUNSFIELD:
        raise BadImage(f"RescaleType is '{units[:16]}': its values are no Hounsfield units")

    def tell(name: str) -> str:
        sequence, field = IN_GROUPS.get(name, ("", name))
        own = group(sequence) if sequence else values
        value = own.get(name if own is values else field, "") or ""
        # The first two values, such as ORIGINAL and PRIMARY, tell nothing of the contrast.
        return "/".join(str(word) for word in value[2:]) if name == "ImageType" else str(value)

    stated = transform.get("RescaleIntercept", None) not in (None, "")
    return Slice(
        header.path, header.sop, frame, position, orientation, spacing, (header.rows, header.columns), slope,
        intercept, stated, tuple(tell(name) for name in TELLS),
    )  # fmt: skip


def build(
    headers: Iterable[dicom_file.Header], patients: Mapping[str, str] | None = None
) -> tuple[list[Series], list[LeftOut]]:
    """Group slices to volumes. Returns the volumes, and what is left out with the reason.

    patients: the patient of every file by its path, if spellings of the PatientID differ.
    """
    grouped: dict[tuple, list[tuple[dicom_file.Header, Slice]]] = defaultdict(list)
    left_out = []
    for header in headers:
        if header.modality not in MODALITIES:
            reason = f"modality {header.modality}: only CT and MR series are read as volumes"
            left_out.append(LeftOut(header.path, header.series, reason))
            continue
        try:
            for one in slices_of(header):
                patient = header.patient if patients is None else patients[header.path]
                grouped[header.study, header.series, patient, one.shape].append((header, one))
        except BadImage as error:
            left_out.append(LeftOut(header.path, header.series, str(error)))
    out = []
    for members in grouped.values():
        header = members[0][0]
        parts = [p for same in _directions([one for _, one in members]) for p in _acquisitions(same)]
        for part in parts:
            try:
                ordered = _ordered(part)
                numbers = {one.part[TELLS.index("AcquisitionNumber")] for one in part}
                # A number of its own for every slice is a counter.
                notes = [JOINED.format(len(numbers))] if 1 < len(numbers) < len(part) else []
                notes += _uneven(ordered)
                kind = MODALITIES[header.modality]
                out.append(Series(header.series, header.study, header.patient, kind, tuple(ordered), tuple(notes)))
            except BadImage as error:
                left_out.append(LeftOut(part[0].path, header.series, str(error)))
    return out, left_out


def _directions(slices: list[Slice]) -> list[list[Slice]]:
    """The slices of each direction. Scanners write directions with some noise."""
    out: list[list[Slice]] = []
    for one in slices:
        apart = [np.abs(np.subtract(one.orientation, other[0].orientation)).max() for other in out]
        if apart and min(apart) <= SAME_DIRECTION:
            out[int(np.argmin(apart))].append(one)
        else:
            out.append([one])
    return out


def _by(slices: list[Slice], names: Iterable[str]) -> list[list[Slice]]:
    """The slices of each combination of values of `names`."""
    where = [TELLS.index(name) for name in names]
    out: dict[tuple[str, ...], list[Slice]] = defaultdict(list)
    for one in slices:
        out[tuple(one.part[i] for i in where)].append(one)
    return list(out.values())


def _acquisitions(slices: list[Slice]) -> list[list[Slice]]:
    """The slices of every volume: those of one contrast; if places repeat, those of one acquisition.

    A field that differs from slice to slice, such as a time, tells nothing apart.
    """
    contrasts = _by(slices, [n for n in CONTRAST if min(map(len, _by(slices, [n]))) >= MIN_SLICES])
    out = []
    for same in contrasts:
        if _unique(same):
            out.append(same)
            continue
        choices = [_by(same, names) for count in (1, 2) for names in itertools.combinations(TELLS, count)]
        fitting = [parts for parts in choices if all(_unique(part) and len(part) >= MIN_SLICES for part in parts)]
        out += fitting[0] if fitting else [same]
    return out


def _unique(slices: list[Slice]) -> bool:
    return len({tuple(round(v / SAME_PLACE) for v in one.position) for one in slices}) == len(slices)


def _beside(along: np.ndarray) -> float:
    """The largest distance of a sorted place from where it would be if all were equally far apart."""
    return float(np.abs(along - np.linspace(along[0], along[-1], len(along))).max())


def _along(slices: list[Slice]) -> np.ndarray:
    """The place of every slice along their normal, mm."""
    normal = np.cross(slices[0].orientation[:3], slices[0].orientation[3:])
    return np.array([float(np.dot(normal, one.position)) for one in slices])


def _uneven(ordered: list[Slice]) -> list[str]:
    along = _along(ordered)
    beside = _beside(along)
    return [UNEVEN.format(beside)] if beside > ALONG / 5 * float(np.median(np.diff(along))) else []


def _ordered(slices: list[Slice]) -> list[Slice]:
    """The slices along their normal. Raises `BadImage` for too few, gaps, repeated places and a tilted gantry."""
    if len(slices) < MIN_SLICES:
        raise BadImage(f"{len(slices)} slices; a volume needs {MIN_SLICES}")
    stated = sum(one.units for one in slices)
    if 0 < stated < len(slices):
        raise BadImage(
            f"{len(slices) - stated} of {len(slices)} slices do not state RescaleIntercept, which the others do"
        )
    first = slices[0]
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    along = _along(slices)
    order = np.argsort(along, kind="stable")
    ordered, steps = [slices[i] for i in order], np.diff(along[order])
    if steps.min() < SAME_PLACE:
        raise BadImage(f"{int((steps < SAME_PLACE).sum())} positions hold several slices that cannot be distinguished")
    median = float(np.median(steps))
    if (np.abs(steps - median) > GAP * median).any():
        worst = float(steps[np.abs(steps - median).argmax()])
        raise BadImage(f"a gap: slices are {median:.4g} mm apart, and {worst:.4g} mm in one place")
    beside = _beside(along[order])
    if beside > ALONG * median:
        raise BadImage(
            f"slices are {steps.min():.4g} to {steps.max():.4g} mm apart: as one volume with equal distances, a slice "
            f"would be {beside:.1f} mm away from its position"
        )
    line = np.array(ordered[-1].position) - np.array(ordered[0].position)
    cosine = abs(float(np.dot(line, normal))) / (float(np.linalg.norm(line)) * float(np.linalg.norm(normal)))
    angle = float(np.degrees(np.arccos(min(1.0, cosine))))
    if angle > TILT:
        raise BadImage(
            f"the gantry is tilted by {angle:.1f} degrees: convert the series with dcm2niix, which resamples"
        )
    places = np.array([one.position for one in ordered])
    straight = places[0] + np.outer((along[order] - along[order][0]) / (along[order][-1] - along[order][0]), line)
    aside = float(np.linalg.norm(places - straight, axis=1).max())
    if aside > ASIDE:
        raise BadImage(f"the slices are not on one straight line: one is {aside:.1f} mm away from it")
    sizes = np.array([one.spacing for one in slices])
    if (np.abs(sizes / sizes[0] - 1) > SAME_SIZE).any():
        raise BadImage("slices with different pixel sizes")
    return ordered
