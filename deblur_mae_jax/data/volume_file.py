"""Open volume files: NIfTI, Analyze and MGH through nibabel, MetaImage and NRRD through SimpleITK."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.data import compressed, grid, raster, simpleitk_volumes
from deblur_mae_jax.data.raster import reason
from deblur_mae_jax.data.simpleitk_volumes import NO_SIZE
from deblur_mae_jax.data.source import BadImage

NIBABEL = (".nii.gz", ".nii", ".hdr", ".img", ".mgz", ".mgh", ".hdr.gz", ".img.gz")
SIMPLEITK = (".mha", ".mhd", ".nrrd", ".nhdr")
SUFFIXES = (*NIBABEL, *SIMPLEITK)
# Affines whose corners differ by less, in voxels, are the same.
SAME = 0.05
SHEAR = 0.5  # largest angle between an axis of the voxels and a right angle, degrees, as of DICOM series
NO_ORIENTATION = "its header has neither sform nor qform, so its orientation is assumed"
UNUSED_SFORM = "its sform is empty or damaged and not used"
NO_ORIENTATION_MGH = "its header states no orientation (goodRASFlag 0); coronal slices are assumed"
ANALYZE = "the Analyze format does not state an orientation; radiological order (right is left) is assumed"
UNORIENTED = {NO_ORIENTATION, NO_ORIENTATION_MGH, ANALYZE}
_GZIP = b"\x1f\x8b"
# A larger start of the voxels in a NIfTI header is damage, or an attempt to fill the memory.
_MAX_OFFSET = 16_000_000
_MM = {"meter": 1000.0, "micron": 0.001}


def is_volume(base: str) -> bool:
    """Whether a file name has the suffix of a volume."""
    return base.lower().endswith(SUFFIXES)


def stem(base: str) -> str:
    """A file name without the suffix of a volume."""
    lower = base.lower()
    suffix = next((s for s in SUFFIXES if lower.endswith(s)), "")
    return base[: len(base) - len(suffix)] if suffix else base


def belongs_to_another(path: str) -> bool:
    """Whether a file holds the voxels of a header beside it: `.img` of `.hdr`, `.raw` of `.mhd`."""
    lower = path.lower()
    start = re.sub(r"\.(img|raw|zraw|bin)(\.gz)?$", "", path, flags=re.I)
    heads = (".hdr", ".HDR", ".hdr.gz") if ".img" in lower[-7:] else (".mhd", ".MHD", ".nhdr")
    if start != path and any(os.path.exists(start + head) for head in heads):
        return True
    if ".img" in lower[-7:] or start == path:
        return False
    try:  # the voxels of a header with another name
        return any(name.lower().endswith((".mhd", ".nhdr")) for name in os.listdir(os.path.dirname(path)))
    except OSError:
        return False


@dataclasses.dataclass
class VolumeFile:
    """A volume, of which only the header has been read.

    shape: (D, H, W) as stored.
    affine: voxel to mm in RAS `(4, 4)`.
    zooms: size of a voxel along each axis, mm.
    plain_bytes: whether the voxels are stored as unsigned bytes without a scale.
    notes: assumptions that were made.
    oriented: whether the file states its orientation.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    zooms: tuple[float, ...]
    plain_bytes: bool
    notes: list[str]
    _load: Any
    _header: Any = None
    oriented: bool = True

    @property
    def turn(self) -> np.ndarray:
        """nibabel's description of the axes and flips that lead to RAS."""
        from nibabel import orientations

        return orientations.io_orientation(self.affine)

    def in_ras(self) -> tuple[tuple[int, ...], tuple[float, ...], np.ndarray]:
        """Shape, voxel size in mm, and affine after reorientation to RAS."""
        from nibabel import orientations

        order = np.argsort(self.turn[:, 0])
        affine = self.affine @ orientations.inv_ornt_aff(self.turn, self.shape)
        return tuple(int(self.shape[i]) for i in order), tuple(self.zooms[i] for i in order), affine

    def values(self, dtype: Any = None) -> np.ndarray:
        """The voxels `(D, H, W)` in RAS orientation, scaled as the header says, as `dtype`. Raises `BadImage`."""
        from nibabel import orientations

        try:
            values = np.asarray(self._load(), dtype).reshape(self.shape)
            return orientations.apply_orientation(values, self.turn)
        except BadImage:
            raise
        except MemoryError as error:
            raise BadImage("not enough memory to decode it") from error
        except Exception as error:  # truncated gzip streams and the like
            # SimpleITK's own messages are about the places where it was built.
            said = "its voxels cannot be read" if "SimpleITK" in str(error) else reason(error)
            raise BadImage(f"damaged: {said}") from error

    def save_like(self, labels: np.ndarray, path: Path) -> Path:
        """Save a label map in RAS orientation as compressed NIfTI, on the grid and with the geometry of this file."""
        import nibabel as nib
        from nibabel import orientations

        turn = orientations.ornt_transform(orientations.axcodes2ornt("RAS"), self.turn)
        stored = orientations.apply_orientation(labels, turn).astype(np.uint8)
        header: Any = None
        if self._header is not None:  # with its geometry fields, and without its texts, which may name a patient
            header = nib.Nifti1Header.from_header(self._header)
            header.set_data_dtype(np.uint8)
            header.set_slope_inter(1, 0)
            for field in ("aux_file", "db_name", "intent_name"):
                header[field] = b""
            header.extensions.clear()
            header["intent_code"] = header["cal_min"] = header["cal_max"] = 0
        image: Any = nib.Nifti1Image(stored, self.affine if header is None else None, header)
        image.header["descrip"] = grid.MARK
        return grid.written(path.with_name(path.name + ".nii.gz"), lambda draft: nib.save(image, draft))


def open_volume(path: str, max_voxels: int) -> VolumeFile:
    """Open a volume. Raises `BadImage` if it is damaged, no volume, or larger than `max_voxels`."""
    if os.path.isdir(path):
        raise BadImage("it is a folder, not a file")
    try:
        if os.path.getsize(path) == 0:
            raise BadImage("empty file (0 bytes)")
        if path.lower().endswith(SIMPLEITK):
            volume = _with_simpleitk(path, max_voxels)
        else:
            volume = _with_nibabel(path, max_voxels)
    except BadImage:
        raise
    except FileNotFoundError as error:
        missing = error.filename and str(error.filename) != path
        raise BadImage("its data file does not exist" if missing else "the file does not exist") from error
    except MemoryError as error:
        raise BadImage("not enough memory to read it") from error
    except Exception as error:  # headers are damaged in as many ways as there are files
        what = "" if not os.path.isfile(path) else raster.stranger(Path(path))
        text = f"not a volume but {what}" if what.startswith(("a Git", "a PDF", "a DICOM")) else ""
        # SimpleITK's own messages are about the places where it was built.
        said = "" if "SimpleITK" in str(error) else f": {reason(error)}"
        raise BadImage(text or f"not a volume file, or damaged{said}") from error
    affine = volume.affine
    if affine is None or not np.isfinite(affine).all() or _is_singular(affine[:3, :3]):
        raise BadImage("its affine is singular or not finite, so its orientation is unknown")
    _refuse_shear(affine[:3, :3])
    return volume


def _is_singular(matrix: np.ndarray) -> bool:
    lengths = np.sqrt((matrix**2).sum(axis=0))
    return bool(lengths.min() <= 0) or abs(float(np.linalg.det(matrix / lengths))) < 1e-6


def _refuse_shear(matrix: np.ndarray) -> None:
    """Raise `BadImage` if the axes of the voxels are not at right angles, as those of a tilted gantry.

    Sizes, distances and resampling by voxel size would be wrong.
    """
    axes = matrix / np.linalg.norm(matrix, axis=0)
    cosines = np.abs(axes.T @ axes - np.eye(3))
    angle = float(np.degrees(np.arcsin(min(1.0, cosines.max()))))
    if angle > SHEAR:
        raise BadImage(
            f"its affine has shear: two axes are {angle:.1f} degrees from a right angle, as with a tilted gantry. "
            "Resample it to a straight grid, for example with dcm2niix"
        )


def _checked(shape: tuple[int, ...], dtype: Any, max_voxels: int) -> tuple[int, int, int]:
    """The three sides of a volume. Raises `BadImage` for other shapes, types and sizes."""
    kind = np.dtype(dtype)
    if kind.kind == "c":
        raise BadImage("its voxels are complex numbers: save their magnitude")
    if kind.fields or kind.kind not in "iufb":
        raise BadImage(f"its voxels are {len(kind.fields or ())} colours, not one number" if kind.fields
                       else f"its voxels are of type {kind}")  # fmt: skip
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3:
        what = f"; {shape[3]} volumes in one file: split them first" if len(shape) == 4 else ""
        raise BadImage(f"{len(shape)} dimensions {shape}; expected a volume of 3{what}")
    if min(shape) < 1:
        raise BadImage(f"no voxels: its shape is {shape}")
    if int(np.prod([int(n) for n in shape], dtype=object)) > max_voxels:
        raise BadImage(f"{shape} voxels, over data.max_pixels={max_voxels}")
    return int(shape[0]), int(shape[1]), int(shape[2])


def _with_nibabel(path: str, max_voxels: int) -> VolumeFile:
    import nibabel as nib

    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # its remarks name no file
    if path.lower().endswith((".img", ".img.gz")) and not belongs_to_another(path):
        raise BadImage("its header (.hdr) is missing")
    notes: list[str] = []
    with open(path, "rb") as file:
        gzipped = file.read(2) == _GZIP
    single = path.lower().endswith((".nii", ".nii.gz"))
    sizes: tuple[float, ...] = (1.0, 1.0, 1.0)
    if single:
        sizes = _check_start(path, gzipped)
        if gzipped != path.lower().endswith(".gz"):
            notes.append(f"the suffix is wrong: the file is {'' if gzipped else 'not '}compressed by gzip")
    # nibabel tells formats by suffixes in lower case.
    by_name = not notes and (not single or path.endswith((".nii", ".nii.gz")))
    with contextlib.nullcontext(nib.load(path)) if by_name else _stream(path, gzipped) as image:
        opened: Any = image
        shape = _checked(opened.shape, opened.get_data_dtype(), max_voxels)
        slope, inter = getattr(opened.dataobj, "slope", 1.0), getattr(opened.dataobj, "inter", 0.0)
        unscaled = (slope in (1.0, None) or np.isnan(slope)) and (not inter or np.isnan(inter))
        plain = opened.get_data_dtype() == np.uint8 and unscaled
        header = opened.header if isinstance(opened, nib.Nifti1Pair) else None
        affine, zooms = _geometry(opened, header, notes)
        from_sform = header is not None and header.get_sform(coded=True)[1] and UNUSED_SFORM not in notes
        if path.lower().endswith((".mgh", ".mgz")) and not _mgh_has_geometry(path, gzipped):
            notes += [NO_ORIENTATION_MGH, NO_SIZE]
        if NO_SIZE not in notes and 0 in sizes and not from_sform:
            notes.append(NO_SIZE)  # nibabel puts 1 in place of 0

    def load() -> np.ndarray:
        if by_name and not (gzipped and single):
            if gzipped:
                compressed.check(path)
            return np.asarray(opened.dataobj)
        with gzip.open(path) if gzipped else open(path, "rb") as stream:  # type: ignore[attr-defined]
            values = np.asarray(_nifti(stream).dataobj)
            if gzipped:
                compressed.drain(stream)
            return values

    return VolumeFile(shape, affine, zooms, plain, notes, load, header, not UNORIENTED & set(notes))


def _check_start(path: str, gzipped: bool) -> tuple[float, ...]:
    """The voxel size of a NIfTI header as it is stored; 1 for NIfTI-2.

    Refuses a header that places the voxels absurdly late, before nibabel reads all that lies between.
    """
    with gzip.open(path) if gzipped else open(path, "rb") as file:  # type: ignore[attr-defined]
        start = file.read(348)
    sizes: tuple[float, ...] = (1.0, 1.0, 1.0)
    for order in ("<", ">"):
        if len(start) >= 112 and int(np.frombuffer(start[:4], f"{order}i4")[0]) == 348:
            sizes = tuple(float(size) for size in np.frombuffer(start[80:92], f"{order}f4"))
            offset = float(np.frombuffer(start[108:112], f"{order}f4")[0])
            if not 352 <= offset <= _MAX_OFFSET and start[344:347] == b"n+1":
                raise BadImage(f"damaged: its voxels are said to start at byte {offset:g}")
    if not start.startswith((b"\x5c\x01", b"\0\0\x01\x5c", b"\x1c\x02", b"\0\0\x02\x1c")):
        what = raster.stranger(Path(path)) if not gzipped else ""
        raise BadImage(f"not a NIfTI file, or damaged{': it is ' + what if what else ''}")
    return sizes


def _mgh_has_geometry(path: str, gzipped: bool) -> bool:
    """Whether an MGH header says that its sizes and directions are set (goodRASFlag), which nibabel does not tell."""
    with gzip.open(path) if gzipped else open(path, "rb") as file:  # type: ignore[attr-defined]
        return file.read(30)[28:] != b"\0\0"


@contextlib.contextmanager
def _stream(path: str, gzipped: bool) -> Iterator[Any]:
    """Open a NIfTI file whose suffix does not say how it is stored."""
    with gzip.open(path) if gzipped else open(path, "rb") as stream:  # type: ignore[attr-defined]
        yield _nifti(stream)


def _nifti(stream: Any) -> Any:
    """The NIfTI image in an open file."""
    import nibabel as nib
    from nibabel.fileholders import FileHolder

    size = stream.read(4)
    stream.seek(0)
    two = 540 in (int.from_bytes(size, "little"), int.from_bytes(size, "big"))
    kind = nib.Nifti2Image if two else nib.Nifti1Image
    return kind.from_file_map({"header": FileHolder(fileobj=stream), "image": FileHolder(fileobj=stream)})


def _geometry(image: Any, header: Any, notes: list[str]) -> tuple[np.ndarray, tuple[float, ...]]:
    """The affine and the voxel size. If the fields of a NIfTI header contradict each other, one is chosen and said."""
    zooms = tuple(float(z) for z in image.header.get_zooms()[:3])
    affine = np.asarray(image.affine, np.float64)
    if header is None:
        if "mgh" not in type(image).__name__.lower():
            notes.append(ANALYZE)
        return affine, zooms
    pixdim = np.array(zooms)
    sform, qform = header.get_sform(coded=True), _qform(header, notes)
    if (
        sform[1]
        and qform[1]
        and (sform[0] is None or not np.isfinite(sform[0]).all() or _is_singular(sform[0][:3, :3]))
    ):
        notes.append(UNUSED_SFORM)
        sform = (None, 0)
    known = {
        name: np.asarray(matrix, np.float64)
        for name, (matrix, code) in {"sform": sform, "qform": qform}.items()
        if code and matrix is not None
    }
    sizes = {name: np.sqrt((matrix[:3, :3] ** 2).sum(axis=0)) for name, matrix in known.items()}
    agrees = {name: np.allclose(size, pixdim, rtol=0.01, atol=1e-4) for name, size in sizes.items()}
    chosen = "sform" if "sform" in known else "qform" if "qform" in known else ""
    if not chosen:
        notes.append(NO_ORIENTATION)
        return _in_mm(header, affine, zooms, notes)
    if "sform" in known and "qform" in known:
        corners = np.array([[0, 0, 0, 1], [*(n - 1 for n in image.shape[:3]), 1]]).T
        apart = np.abs(np.linalg.pinv(known["sform"]) @ known["qform"] @ corners - corners)[:3].max()
        if apart > SAME * 10 or not agrees["sform"]:
            unset = np.allclose(pixdim, 1.0)  # the value of a field that nobody set
            chosen = "sform" if agrees["sform"] or unset or not np.allclose(sizes["sform"], 1.0) else "qform"
            notes.append(
                f"sform ({_listed(sizes['sform'])} mm, {_axes(known['sform'])}) and qform with pixdim "
                f"({_listed(pixdim)} mm, {_axes(known['qform'])}) contradict each other, by {apart:.3g} voxels at the "
                f"most; the {chosen} is used"
            )
    elif not agrees[chosen]:
        notes.append(
            f"{chosen} ({_listed(sizes[chosen])} mm) and pixdim ({_listed(pixdim)} mm) contradict each other; the "
            f"{chosen} is used"
        )
    if not agrees[chosen]:
        zooms = tuple(float(z) for z in sizes[chosen])
    return _in_mm(header, known[chosen], zooms, notes)


def _qform(header: Any, notes: list[str]) -> tuple[Any, int]:
    try:
        return header.get_qform(coded=True)
    except ValueError:  # numbers that are no rotation
        notes.append("its qform is damaged and not used")
        return None, 0


def _in_mm(header: Any, affine: np.ndarray, zooms: tuple[float, ...], notes: list[str]):
    unit = header.get_xyzt_units()[0]
    if unit not in _MM:
        return affine, zooms
    notes.append(f"its unit of length is the {unit}; it is converted to mm")
    scale = np.diag([_MM[unit]] * 3 + [1.0])
    return scale @ affine, tuple(z * _MM[unit] for z in zooms)


def _axes(affine: np.ndarray) -> str:
    """The directions of the axes, such as RAS."""
    from nibabel import orientations

    return "".join(str(code) for code in orientations.aff2axcodes(affine))


def _listed(sizes: Any) -> str:
    return " x ".join(f"{float(size):.4g}" for size in sizes)


def _with_simpleitk(path: str, max_voxels: int) -> VolumeFile:
    opened = simpleitk_volumes.opened(path)
    shape = _checked(opened.size, np.uint8 if opened.bytes else np.float32, max_voxels)
    zooms = tuple(float(z) for z in np.sqrt((opened.affine[:3, :3] ** 2).sum(axis=0)))
    return VolumeFile(shape, opened.affine, zooms, opened.bytes, opened.notes, opened.load, None, opened.oriented)


def data_file(path: str) -> str:
    """The file with the voxels of a header; "" if they are in the same file."""
    lower = path.lower()
    if lower.endswith((".hdr", ".hdr.gz")):
        start = path[: lower.rindex(".hdr")]
        return next((start + end for end in (".img", ".img.gz", ".IMG") if os.path.exists(start + end)), "")
    if not lower.endswith((".mhd", ".nhdr")):
        return ""
    try:
        with open(path, encoding="latin-1") as file:
            name = simpleitk_volumes.data_named(file.read(1 << 16))
    except OSError:
        return ""
    return "" if name in ("", "LOCAL") else os.path.join(os.path.dirname(path), name)
