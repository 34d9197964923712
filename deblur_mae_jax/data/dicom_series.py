"""Put the slices of CT and MR series together to volumes, by their positions and never by their names or numbers."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np

from deblur_mae_jax.data import dicom_file, dicom_pixels
from deblur_mae_jax.data.image_files import stamp_of
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.data.volume_file import VolumeFile

MIN_SLICES = 8
# Largest difference of a step between slices from the median step, as a share of it.
GAP = 0.1
# Largest angle between the normal of the slices and the line of their positions, degrees.
TILT = 0.5
SAME_PLACE = 0.01  # mm
MODALITIES = {"CT": "ct", "MR": "mr"}


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice: a file, or a frame of a multi-frame file.

    position, orientation: of the patient (LPS), mm.
    spacing: (row, column), mm.
    slope, intercept: from stored values to Hounsfield units, or to MR intensities.
    part: what tells repeated acquisitions of one place apart: echo, b-value, time, acquisition.
    """

    path: str
    frame: int
    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    shape: tuple[int, int]
    slope: float
    intercept: float
    part: tuple[str, ...]
    acquisition: str


@dataclasses.dataclass(frozen=True)
class Series:
    """A volume of one modality.

    uid, study, patient: identifiers, in memory only.
    slices: in the order of their positions along the normal.
    """

    uid: str
    study: str
    patient: str
    modality: str
    slices: tuple[Slice, ...]

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
        return VolumeFile(shape, affine, zooms, False, [], self._voxels)

    def _voxels(self) -> np.ndarray:
        planes = []
        headers = {path: dicom_file.dataset(path) for path in {one.path for one in self.slices}}
        for one in self.slices:
            try:
                stored = dicom_pixels.stored(one.path, one.frame, headers[one.path])
            except Exception as error:  # decoders raise many kinds on damaged data
                raise BadImage(f"damaged: a slice cannot be decoded ({type(error).__name__})") from error
            if stored.shape != one.shape:
                raise BadImage(f"damaged: a slice has the shape {stored.shape}, its header says {one.shape}")
            planes.append(stored.T * np.float32(one.slope) + np.float32(one.intercept))
        return np.stack(planes, axis=-1)


@dataclasses.dataclass(frozen=True)
class LeftOut:
    """A series, or a part of one, that is no volume."""

    path: str
    uid: str
    reason: str


def slices_of(header: dicom_file.Header) -> list[Slice]:
    """The slices of a file. Raises `BadImage` if it has no positions, or is a localiser or derived picture."""
    values = dicom_file.dataset(header.path)
    kinds = {str(kind).upper() for kind in values.get("ImageType", None) or ()}
    if "LOCALIZER" in kinds:
        raise BadImage("a localiser")
    if kinds & {"SCREEN SAVE", "SECONDARY"} or str(values.get("ConversionType", "")):
        raise BadImage("a derived picture, such as a saved screen")
    if values.get("SamplesPerPixel", 1) != 1:
        raise BadImage("a colour picture in a series")
    try:
        if "PerFrameFunctionalGroupsSequence" in values:
            return _enhanced(header, values)
        if "ImagePositionPatient" not in values or "ImageOrientationPatient" not in values:
            raise BadImage("it has no position in space (ImagePositionPatient)")
        return [_slice(header, 0, values, [values] * 4)]
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(f"damaged: its geometry cannot be understood ({type(error).__name__})") from error


def _enhanced(header: dicom_file.Header, values: Any) -> list[Slice]:
    """The frames of an enhanced multi-frame file, whose geometry is in functional groups."""
    shared = (values.get("SharedFunctionalGroupsSequence", None) or [None])[0]
    out = []
    for number, own in enumerate(values.PerFrameFunctionalGroupsSequence):
        parts = []
        for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence",
                     "PixelValueTransformationSequence"):  # fmt: skip
            group = own if name in own else shared if shared is not None and name in shared else None
            parts.append(values if group is None else group[name].value[0])
        out.append(_slice(header, number, values, parts))
    return out


def _slice(header: dicom_file.Header, frame: int, values: Any, parts: list[Any]) -> Slice:
    """parts: the data sets with position, orientation, pixel measures and value transformation."""
    position, orientation, measures, transform = parts
    numbers = lambda item, name: tuple(float(v) for v in item[name].value)
    tells = ("EchoNumbers", "DiffusionBValue", "TemporalPositionIdentifier", "TriggerTime")
    return Slice(
        header.path, frame, numbers(position, "ImagePositionPatient"), numbers(orientation, "ImageOrientationPatient"),
        numbers(measures, "PixelSpacing"), (header.rows, header.columns),
        float(transform.get("RescaleSlope", 1) or 1), float(transform.get("RescaleIntercept", 0) or 0),
        tuple(str(values.get(name, "")) for name in tells), str(values.get("AcquisitionNumber", "")),
    )  # fmt: skip


def build(headers: Iterable[dicom_file.Header]) -> tuple[list[Series], list[LeftOut]]:
    """Group slices to volumes. Returns the volumes, and what is left out with the reason."""
    grouped: dict[tuple, list[tuple[dicom_file.Header, Slice]]] = defaultdict(list)
    left_out = []
    for header in headers:
        if header.modality not in MODALITIES:
            reason = f"modality {header.modality}: only CT and MR series are read as volumes"
            left_out.append(LeftOut(header.path, header.series, reason))
            continue
        try:
            for one in slices_of(header):
                direction = tuple(round(v, 3) + 0.0 for v in one.orientation)
                grouped[header.study, header.series, direction, one.shape, one.part].append((header, one))
        except BadImage as error:
            left_out.append(LeftOut(header.path, header.series, str(error)))
    out = []
    for members in grouped.values():
        header = members[0][0]
        for part in _acquisitions([one for _, one in members]):
            try:
                ordered = _ordered(part)
                kind = MODALITIES[header.modality]
                out.append(Series(header.series, header.study, header.patient, kind, tuple(ordered)))
            except BadImage as error:
                left_out.append(LeftOut(part[0].path, header.series, str(error)))
    return out, left_out


def _acquisitions(slices: list[Slice]) -> list[list[Slice]]:
    """The slices of every acquisition, if places repeat; else all of them."""
    places = {tuple(round(v / SAME_PLACE) for v in one.position) for one in slices}
    if len(places) == len(slices):
        return [slices]
    by_number: dict[str, list[Slice]] = defaultdict(list)
    for one in slices:
        by_number[one.acquisition].append(one)
    return list(by_number.values())


def _ordered(slices: list[Slice]) -> list[Slice]:
    """The slices along their normal. Raises `BadImage` for too few, gaps, repeated places and a tilted gantry."""
    if len(slices) < MIN_SLICES:
        raise BadImage(f"{len(slices)} slices; a volume needs {MIN_SLICES}")
    first = slices[0]
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    along = np.array([float(np.dot(normal, one.position)) for one in slices])
    order = np.argsort(along, kind="stable")
    ordered, steps = [slices[i] for i in order], np.diff(along[order])
    if steps.min() < SAME_PLACE:
        raise BadImage(f"{int((steps < SAME_PLACE).sum())} places hold several slices that nothing tells apart")
    median = float(np.median(steps))
    if (np.abs(steps - median) > GAP * median).any():
        worst = float(steps[np.abs(steps - median).argmax()])
        raise BadImage(f"a gap: slices are {median:.4g} mm apart, and {worst:.4g} mm in one place")
    line = np.array(ordered[-1].position) - np.array(ordered[0].position)
    cosine = abs(float(np.dot(line, normal))) / (float(np.linalg.norm(line)) * float(np.linalg.norm(normal)))
    angle = float(np.degrees(np.arccos(min(1.0, cosine))))
    if angle > TILT:
        raise BadImage(
            f"the gantry is tilted by {angle:.1f} degrees: convert the series with dcm2niix, which resamples"
        )
    if len({tuple(round(s, 4) for s in one.spacing) for one in slices}) > 1:
        raise BadImage("slices with different pixel sizes")
    return ordered
