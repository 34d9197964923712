"""Read the header of one DICOM file: what it is, and the fields that are used.

It needs pydicom: `pip install ".[dicom]"` in the folder of the repository.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import re
import warnings
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError

EXTRA = "pip install '.[dicom]' in the repository"
# Objects without pictures that can be trained on, by the start of their SOP class or by their modality.
NO_PICTURES = {
    "1.2.840.10008.1.3.10": "a DICOMDIR", "1.2.840.10008.5.1.4.1.1.88": "a structured report",
    "1.2.840.10008.5.1.4.1.1.11": "a presentation state", "1.2.840.10008.5.1.4.1.1.104": "an encapsulated document",
    "1.2.840.10008.5.1.4.1.1.481.3": "a radiotherapy structure set", "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.9": "a waveform", "1.2.840.10008.5.1.4.1.1.481.5": "a radiotherapy plan",
    "1.2.840.10008.5.1.4.1.1.481.2": "a radiotherapy dose",
}  # fmt: skip
# Deflated Explicit VR Little Endian, and the largest size of such a file after inflation, bytes.
DEFLATED, MAX_INFLATED = b"1.2.840.10008.1.2.1.99", 500_000_000
MOST_FRAMES = 1_000_000
# The modality of a SOP class, for files that do not state it.
MODALITIES = {
    "1.2.840.10008.5.1.4.1.1.6": "US", "1.2.840.10008.5.1.4.1.1.3": "US", "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
}  # fmt: skip
NO_PICTURE_MODALITIES = {
    "SR": "a structured report", "PR": "a presentation state", "KO": "a list of key objects", "DOC": "a document",
    "RTSTRUCT": "a radiotherapy structure set", "SEG": "a segmentation",
}  # fmt: skip


def pydicom() -> Any:
    """The module. Raises `UserError` that says what to install."""
    try:
        import pydicom as module
    except ImportError as error:
        raise UserError(f"DICOM files need pydicom, which is not installed: {EXTRA}") from error
    # Its remarks on damaged elements quote their values, which may identify patients.
    warnings.filterwarnings("ignore", module=r"pydicom|deblur_mae_jax\.data\.dicom")
    # A level, unlike `disabled`, holds for the loggers below it too, which print tracebacks of damaged pixels.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    return module


def is_dicom(path: str) -> bool:
    """Whether a file is DICOM, by its preamble, or by a file-meta group without one; not if it cannot be read."""
    return not why_not(path)


def why_not(path: str) -> str:
    """Why a file is not DICOM; "" if it is."""
    try:
        with open(path, "rb") as file:
            start = file.read(140)
    except OSError as error:
        return f"cannot be read: {error.strerror or error}"
    if not start:
        return "empty file (0 bytes)"
    return "" if _starts_as_dicom(start) else "not a DICOM file"


def _starts_as_dicom(start: bytes) -> bool:
    if start[128:132] == b"DICM":
        return True
    # A file without preamble starts with group 2 or 8, whose elements have even lengths and known numbers.
    return start[:2] in (b"\x02\0", b"\x08\0") and start[2:4] in (b"\0\0", b"\x01\0", b"\x05\0", b"\x08\0", b"\x16\0")


@dataclasses.dataclass(frozen=True)
class Header:
    """What is used of the header of a file. Identifiers are used in memory only, and never written.

    path: the file.
    sop, series, study, patient: identifiers (UIDs; PatientID with its issuer).
    modality, manufacturer, model: free to be written.
    syntax: name of the transfer syntax.
    photometric: photometric interpretation.
    rows, columns, frames: size.
    frame_seconds: time between frames, s; 0 if unknown.
    burned_in: whether the header says that text is burned into the pixels.
    regions: boxes (x0, y0, x1, y1), exclusive, of the 2-D tissue regions of an ultrasound picture.
    spacing: (row, column) size of a pixel, mm; () if unknown.
    unused_regions: number of stated tissue regions that are empty or outside of the picture.
    unread: optional fields that are not used because their values cannot be understood, such as `0,3`.
    """

    path: str
    sop: str
    series: str
    study: str
    patient: str
    modality: str
    manufacturer: str
    model: str
    syntax: str
    photometric: str
    rows: int
    columns: int
    frames: int
    frame_seconds: float
    burned_in: bool
    regions: tuple[tuple[int, int, int, int], ...]
    spacing: tuple[float, ...]
    unused_regions: int = 0
    unread: tuple[str, ...] = ()

    @property
    def box(self) -> tuple[int, int, int, int] | None:
        """The box around all tissue regions, or `None` without any."""
        if not self.regions:
            return None
        x0, y0, x1, y1 = zip(*self.regions, strict=True)
        return min(x0), min(y0), max(x1), max(y1)

    @property
    def is_cut(self) -> bool:
        """Whether the tissue regions leave out a part of the picture."""
        return self.box is not None and self.box != (0, 0, self.columns, self.rows)


def dataset(path: str) -> Any:
    """The header of a file as a pydicom data set, without pixels. Raises `BadImage`."""
    module = pydicom()
    try:
        _refuse_bomb(path)
        return module.dcmread(path, stop_before_pixels=True, force=True)
    except BadImage:
        raise
    except FileNotFoundError as error:
        raise BadImage("the file does not exist") from error
    except MemoryError as error:
        raise BadImage("not enough memory to read it") from error
    except Exception as error:  # headers are damaged in as many ways as there are files
        raise BadImage(f"damaged: its header cannot be read ({type(error).__name__})") from error


def syntax_of(values: Any) -> str:
    """The name of the transfer syntax of a file."""
    syntax = getattr(getattr(values, "file_meta", None), "TransferSyntaxUID", None)
    return syntax.name if syntax is not None and hasattr(syntax, "name") else "not stated"


def _refuse_bomb(path: str) -> None:
    """Refuse a deflated file that grows beyond all sizes, which pydicom would inflate at once. Raises `BadImage`."""
    with open(path, "rb") as file:
        start = file.read(1024)
        if DEFLATED not in start:
            return
        file.seek(start.index(DEFLATED) + len(DEFLATED))
        unpack, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
        rest = file.read()
        # The compressed part starts after the file-meta group, whose length is in its first element.
        group = int.from_bytes(start[140:144], "little") if start[132:136] == b"\x02\0\0\0" else 0
        rest = rest[max(0, 144 + group - start.index(DEFLATED) - len(DEFLATED)) :]
        try:
            while rest and size <= MAX_INFLATED:
                size += len(unpack.decompress(rest, 1 << 24))
                rest = unpack.unconsumed_tail
        except zlib.error as error:
            raise BadImage("damaged: its deflated part cannot be read") from error
    if size > MAX_INFLATED:
        raise BadImage(f"it grows beyond {MAX_INFLATED // 1_000_000} MB when it is inflated")


def header(path: str) -> Header:
    """Read the header of a file with pictures. Raises `BadImage` for other objects and for damage."""
    if os.path.getsize(path) == 0:
        raise BadImage("empty file (0 bytes)")
    values = dataset(path)
    try:
        return _header(path, values)
    except BadImage:
        raise
    except Exception as error:
        raise BadImage(f"damaged: its header cannot be understood ({type(error).__name__})") from error


def _header(path: str, values: Any) -> Header:
    text = lambda name: str(values.get(name, "") or "").strip()
    meta = getattr(values, "file_meta", None)
    sop_class = text("SOPClassUID") or str(getattr(meta, "MediaStorageSOPClassUID", "") or "")
    for start, what in NO_PICTURES.items():
        if sop_class == start or sop_class.startswith(start + "."):
            raise BadImage(f"{what}, which holds no picture")
    by_class = [name for start, name in MODALITIES.items() if f"{sop_class}.".startswith(f"{start}.")]
    modality = text("Modality").upper() or "".join(by_class)
    if modality in NO_PICTURE_MODALITIES:
        raise BadImage(f"{NO_PICTURE_MODALITIES[modality]}, which holds no picture")
    if not values.get("Rows") or not values.get("Columns"):
        raise BadImage("it holds no picture (no Rows and Columns)")
    frames = int(values.get("NumberOfFrames", 1) or 1)
    if frames > MOST_FRAMES:  # a damaged number
        raise BadImage(f"damaged: it states {frames:,} frames")
    try:
        regions, scales, unused = _regions(values)
    except Exception as error:  # without them, text beside the tissue would stay in the picture
        raise BadImage("damaged: its SequenceOfUltrasoundRegions cannot be understood") from error
    unread: list[str] = []
    spacing = tuple[float, ...](scales[0] if scales else ())
    if not np.allclose(scales or 1.0, spacing or 1.0, rtol=0.01):
        spacing = ()
        unread.append("PhysicalDeltaX and PhysicalDeltaY (regions of different scales)")
    for name in () if scales else ("PixelSpacing", "ImagerPixelSpacing"):
        sizes: tuple[float, ...] = _optional(name, unread, functools.partial(_sizes, values, name), ())
        if not spacing and len(sizes) == 2 and all(0 < s < 1e4 for s in sizes):
            spacing = sizes
    seconds = _optional("FrameTime", unread, lambda: _frame_seconds(values), 0.0)
    return Header(
        path, text("SOPInstanceUID"), text("SeriesInstanceUID"), text("StudyInstanceUID"), _patient(values),
        modality or "unknown", text("Manufacturer"), text("ManufacturerModelName"), syntax_of(values),
        text("PhotometricInterpretation"), int(values.Rows), int(values.Columns), frames,
        seconds, text("BurnedInAnnotation").upper() == "YES", regions, spacing, unused, tuple(unread),
    )  # fmt: skip


def _optional(name: str, unread: list[str], read: Callable[[], Any], unknown: Any) -> Any:
    """The value of a field that a picture can do without; `unknown`, and its name in `unread`, if it is damaged."""
    try:
        return read()
    except Exception:  # pydicom converts a field when it is asked for
        unread.append(name)
        return unknown


def _sizes(values: Any, name: str) -> tuple[float, ...]:
    return tuple(float(size) for size in values.get(name, None) or ())


def _frame_seconds(values: Any) -> float:
    """The time between frames, s; 0 if it is unknown. Of frames at irregular times it is the mean."""
    vector = [float(v) for v in np.atleast_1d(np.asarray(values.get("FrameTimeVector", None) or [], float))][1:]
    if vector and sum(vector) > 0:
        return sum(vector) / len(vector) / 1000
    rate = float(values.get("CineRate", 0) or values.get("RecommendedDisplayFrameRate", 0) or 0)
    return float(values.get("FrameTime", 0) or 0) / 1000 or (1 / rate if rate else 0.0)


def _patient(values: Any) -> str:
    patient = str(values.get("PatientID", "") or "").strip()
    issuer = str(values.get("IssuerOfPatientID", "") or "").strip()
    return f"{patient}|{issuer}" if patient else ""


def _regions(values: Any) -> tuple[tuple[tuple[int, int, int, int], ...], list[tuple[float, float]], int]:
    """Boxes of the 2-D tissue regions, the pixel sizes (row, column) in mm of those that state them in cm, and the
    number of regions that cannot be used.
    """
    boxes, sizes, unused = [], list[tuple[float, float]](), 0
    width, height = int(values.Columns), int(values.Rows)
    for region in values.get("SequenceOfUltrasoundRegions", None) or ():
        if int(region.get("RegionSpatialFormat", 0) or 0) != 1 or int(region.get("RegionDataType", 1) or 1) != 1:
            continue
        corners = [region.get(f"RegionLocation{name}", None) for name in ("MinX0", "MinY0", "MaxX1", "MaxY1")]
        if any(corner is None for corner in corners):
            unused += 1
            continue
        x0, y0, x1, y1 = (int(corner) for corner in corners)
        x1, y1 = x1 + 1, y1 + 1
        x0, y0, x1, y1 = max(0, x0), max(0, y0), min(width, x1), min(height, y1)
        if x1 - x0 < 2 or y1 - y0 < 2:
            unused += 1
            continue
        boxes.append((x0, y0, x1, y1))
        units = [region.get(f"PhysicalUnits{axis}Direction", None) or 0 for axis in "XY"]
        deltas = [abs(float(region.get(f"PhysicalDelta{axis}", None) or 0)) for axis in "YX"]
        if units == [3, 3] and all(0 < delta < 100 for delta in deltas):
            sizes.append((10 * deltas[0], 10 * deltas[1]))
    return tuple(boxes), sizes, unused


def chosen_frames(text: str, header: Header | None) -> list[int]:
    """The frames of a file that `config.data.frames` chooses. Raises `UserError`.

    text: "uniform(8)", "every(1.0 s)", "all", "first" or "middle".
    header: header of the file, or `None` to check the text only.
    """
    found = re.fullmatch(r"uniform\((\d+)\)|every\(([\d.]+) ?s\)|(all|first|middle)", text)
    if found is None or found[1] == "0" or (found[2] and not _positive(found[2])):
        raise UserError(
            f"config.data.frames='{text}': unknown choice. Choices: uniform(8), every(1.0 s), all, first, middle"
        )
    count = 1 if header is None else header.frames
    if header is None or count <= 1:
        return [0]
    if found[1]:
        return sorted({int(i) for i in np.linspace(0, count - 1, min(int(found[1]), count)).round()})
    if found[2]:
        # Without a stated time, 25 frames per second.
        step = max(1.0, float(found[2]) / (header.frame_seconds or 0.04))
        return sorted({min(count - 1, round(i * step)) for i in range(int((count - 1) / step) + 1)})
    return list(range(count)) if found[3] == "all" else [0 if found[3] == "first" else count // 2]


def _positive(text: str) -> bool:
    try:
        return float(text) > 0
    except ValueError:
        return False
