"""Open MetaImage and NRRD files through SimpleITK, which leaves some fields of their headers unread."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable

import numpy as np

from deblur_mae_jax.data import compressed
from deblur_mae_jax.data.source import BadImage

NO_SPACE = "its header states no anatomical orientation; left-posterior-superior (DICOM's) is assumed"
NO_SIZE = "its header does not state the size of a voxel along every axis; 1 mm is assumed where it is missing"
# Millimetres of the units of both formats.
UNITS = {
    "mm": 1.0, "millimeter": 1.0, "millimeters": 1.0, "cm": 10.0, "m": 1000.0, "um": 0.001, "micron": 0.001,
    "microns": 0.001,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Opened:
    """What a header says.

    size: sides, with those of further dimensions.
    affine: voxel to mm in RAS `(4, 4)`.
    bytes: whether the voxels are unsigned bytes without a scale.
    notes: assumptions that were made.
    load: reads the voxels `(D, H, W)`.
    oriented: whether the file states its orientation.
    """

    size: tuple[int, ...]
    affine: np.ndarray
    bytes: bool
    notes: list[str]
    load: Callable[[], np.ndarray]
    oriented: bool


def opened(path: str) -> Opened:
    """Read the header of a file. Raises `BadImage`."""
    try:
        import SimpleITK as sitk
    except ImportError as error:
        raise BadImage("MetaImage and NRRD files need SimpleITK: pip install '.[volumes]' in the repository") from error
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise BadImage("its name is not UTF-8, which SimpleITK cannot open: rename it") from error
    text = _header_text(path)
    _refuse_data_elsewhere(text)
    meta = path.lower().endswith((".mha", ".mhd"))
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO" if meta else "NrrdImageIO")
    reader.SetFileName(path)
    reader.ReadImageInformation()
    if reader.GetNumberOfComponents() != 1:
        raise BadImage(f"its voxels are {reader.GetNumberOfComponents()} numbers, not one")
    kind = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    if "complex" in kind:
        raise BadImage("its voxels are complex numbers: save their magnitude")
    size = tuple(int(n) for n in reader.GetSize())
    if len(size) < 3:
        raise BadImage(f"{len(size)} dimensions {size}; expected a volume of 3")
    flip = np.diag([-1.0, -1.0, 1.0])  # LPS to RAS
    direction = np.array(reader.GetDirection()).reshape(len(size), len(size))[:3, :3]
    mm = _millimetres(text, meta)
    affine = np.eye(4)
    affine[:3, :3] = mm * flip @ direction @ np.diag([float(s) for s in reader.GetSpacing()[:3]])
    affine[:3, 3] = mm * flip @ np.array(reader.GetOrigin()[:3])
    stated = re.search(r"^\s*(TransformMatrix|Orientation|Rotation)\s*=|^space: *(?!scanner|3)\S", text, re.I | re.M)
    notes = ([] if stated else [NO_SPACE]) + ([] if _states_sizes(text, meta) else [NO_SIZE])
    slope, offset = _intensities(text) if meta else (1.0, 0.0)
    scaled = (slope, offset) != (1.0, 0.0)

    def load() -> np.ndarray:
        compressed.check(path)
        values = sitk.GetArrayFromImage(reader.Execute())
        values = values.reshape(values.shape[-3:]).transpose(2, 1, 0)
        return values * np.float32(slope) + np.float32(offset) if scaled else values

    return Opened(size, affine, "8-bit unsigned" in kind and not scaled, notes, load, bool(stated))


def _header_text(path: str) -> str:
    with open(path, "rb") as file:
        text = file.read(65536).decode("latin-1")
    # The voxels of a .nrrd follow an empty line, those of a .mha the line that says LOCAL.
    return re.split(r"\r?\n\r?\n|ElementDataFile *= *LOCAL", text, maxsplit=1)[0] + (
        "\nElementDataFile = LOCAL" if "LOCAL" in text else ""
    )


def _millimetres(text: str, meta: bool) -> float:
    """The unit of length of a header, mm. Raises `BadImage` for unknown units, and for several."""
    name = "DistanceUnits" if meta else "space units"
    found = re.search(rf"^\s*{name}\s*[:=]\s*(.+)$", text, re.I | re.M)
    if found is None and not meta:
        name, found = "units", re.search(r"^units\s*:\s*(.+)$", text, re.I | re.M)
    words = [word.lower() for word in re.findall(r'[^"\s]+', found[1])] if found else []
    known = {UNITS.get(word) for word in words if word not in ("?", "none", "???")}
    if None in known:
        strange = next(word for word in words if word not in UNITS)
        raise BadImage(f"{name} '{strange[:20]}' are none of {', '.join(UNITS)}")
    if len(known) > 1:
        raise BadImage(f"{name} are {' and '.join(dict.fromkeys(words))}: one unit for all axes is needed")
    return next(iter(known), 1.0) or 1.0


def _states_sizes(text: str, meta: bool) -> bool:
    """Whether a header states the size of a voxel along every axis."""
    if meta:
        return re.search(r"^\s*(ElementSpacing|ElementSize)\s*=", text, re.I | re.M) is not None
    if re.search(r"^space directions\s*:", text, re.I | re.M):
        return True
    found = re.search(r"^spacings\s*:\s*(.+)$", text, re.I | re.M)
    return found is not None and "nan" not in found[1].lower()


def _intensities(text: str) -> tuple[float, float]:
    """The slope and offset that a MetaImage states for its values, which ITK does not apply. Raises `BadImage`."""
    values = []
    for name, usual in (("Slope", 1.0), ("Offset", 0.0)):
        found = re.search(rf"^\s*ElementToIntensityFunction{name}\s*=\s*(\S+)", text, re.I | re.M)
        try:
            values.append(float(found[1]) if found else usual)
        except ValueError:
            values.append(np.nan)
    if not np.isfinite(values).all() or values[0] == 0:
        raise BadImage("ElementToIntensityFunctionSlope and Offset must be numbers, and the slope not 0")
    return values[0], values[1]


def data_named(text: str) -> str:
    """The file with the voxels, as the text of a MetaImage or NRRD header names it; "" if it names none."""
    found = re.search(r"^\s*(?:ElementDataFile\s*=|data ?file\s*:)\s*([^\r\n]+)", text, re.I | re.M)
    return found[1].strip() if found else ""


def _refuse_data_elsewhere(text: str) -> None:
    """Refuse a header whose voxels are in another folder."""
    name = data_named(text)
    if name.upper().startswith("LIST") or "%" in name:
        raise BadImage("its voxels are in a list of other files, which is not read")
    if name and name != "LOCAL" and os.path.basename(name) != name.removeprefix("./"):
        raise BadImage(f"its voxels are said to be in another folder, '{name[:80]}'")
