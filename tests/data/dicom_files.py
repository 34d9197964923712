"""DICOM files of every kind, made for the tests."""

import functools
import io
import json
import logging
from pathlib import Path

import highdicom
import imagecodecs
import numpy as np
import pydicom
from dicom_validator.validator.dicom_info import DicomInfo
from dicom_validator.validator.iod_validator import IODValidator
from PIL import Image
from pydicom._dicom_dict import DicomDictionary
from pydicom.datadict import keyword_for_tag, tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, ExplicitVRLittleEndian, generate_uid

NAME = "Zzyzx^Planted"
CT, US, US_CLIP = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.6.1", "1.2.840.10008.5.1.4.1.1.3.1"
# Fields that the standard asks for in every file, and allows to be empty.
MAY_BE_EMPTY = (
    "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyID",
    "SeriesNumber", "InstanceNumber",
)  # fmt: skip
SYNTAXES = {
    "native": ExplicitVRLittleEndian, "implicit": UID("1.2.840.10008.1.2"), "rle": UID("1.2.840.10008.1.2.5"),
    "jpeg": UID("1.2.840.10008.1.2.4.50"), "jpeg2000": UID("1.2.840.10008.1.2.4.90"),
    "jpegls": UID("1.2.840.10008.1.2.4.80"), "jpeg_lossless": UID("1.2.840.10008.1.2.4.70"),
}  # fmt: skip


def picture(height=40, width=60):
    """All gray levels from 0 to 255."""
    return np.rint(np.linspace(0, 255, height * width)).reshape(height, width).astype(np.uint8)


def base(sop_class=US, patient="P1", study="1.2.3.1", series="1.2.3.1.1", modality="US"):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    values = Dataset()
    values.file_meta = meta
    values.SOPClassUID, values.SOPInstanceUID = sop_class, meta.MediaStorageSOPInstanceUID
    values.StudyInstanceUID, values.SeriesInstanceUID = study, series
    values.PatientID, values.PatientName, values.Modality = patient, NAME, modality
    values.Manufacturer, values.ManufacturerModelName = "Maker", "Scanner 1"
    for name in MAY_BE_EMPTY:
        setattr(values, name, "")
    if modality == "US":
        values.ImageType = ["ORIGINAL", "PRIMARY"]
    return values


def with_pixels(values, frames, photometric="MONOCHROME2", syntax="native", bits=8, signed=False):
    """Put frames `(N, H, W)` or `(N, H, W, 3)` into a data set."""
    frames = np.asarray(frames)
    values.Rows, values.Columns = frames.shape[1:3]
    values.SamplesPerPixel = 3 if frames.ndim == 4 else 1
    if frames.ndim == 4:
        values.PlanarConfiguration = 0
    values.PhotometricInterpretation = photometric
    values.BitsAllocated, values.BitsStored, values.HighBit = (16 if bits > 8 else 8), bits, bits - 1
    values.PixelRepresentation = int(signed)
    if len(frames) > 1:
        values.NumberOfFrames = len(frames)
        values.FrameIncrementPointer = pydicom.tag.Tag("FrameTime")
    values.file_meta.TransferSyntaxUID = SYNTAXES[syntax]
    if syntax in ("native", "implicit"):
        values.PixelData = frames.tobytes()
    elif syntax == "rle":
        values.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        values.PixelData = frames.tobytes()
        values.compress(SYNTAXES["rle"])
    else:
        encode = {
            "jpeg": jpeg,
            "jpeg2000": lambda f: imagecodecs.jpeg2k_encode(f, codecformat="j2k", reversible=True, level=0),
            "jpegls": imagecodecs.jpegls_encode, "jpeg_lossless": imagecodecs.ljpeg_encode,
        }[syntax]  # fmt: skip
        values.PixelData = encapsulate([bytes(encode(frame)) for frame in frames])
        values["PixelData"].is_undefined_length = True
    return values


@functools.cache
def standard():
    """The tables of the standard, for dicom-validator, which would download its text: from highdicom and pydicom.

    Without the conditions of fields that are needed in some cases only, which these tables hold as prose.
    """
    folder = Path(highdicom.__file__).parent / "_standard"
    kinds, modules, fields = (
        json.loads((folder / f"{name}.json").read_text())
        for name in ("sop_class_iod_map", "iod_module_map", "module_attribute_map")
    )
    number = lambda keyword: "({:04X},{:04X})".format(*divmod(tag_for_keyword(keyword), 65536))
    known = {key: [f for f in of if not f["path"] and tag_for_keyword(f["keyword"])] for key, of in fields.items()}
    described = {
        key: {number(f["keyword"]): {"name": f["keyword"], "type": f["type"].replace("C", "")[:1]
                                     if "C" not in f["type"] else "3"} for f in of}
        for key, of in known.items()
    }  # fmt: skip
    usual = lambda usage: "M" if usage == "M" else "U"
    iods = {
        uid: {"title": iod, "group_macros": {}, "modules": {
            m["key"]: {"ref": m["key"], "use": usual(m["usage"])} for m in modules[iod] if m["key"] in described}}
        for uid, iod in kinds.items() if iod in modules
    }  # fmt: skip
    words = {f"({tag >> 16:04X},{tag & 65535:04X})": {"name": entry[2], "vr": entry[0], "vm": entry[1]}
             for tag, entry in DicomDictionary.items()}  # fmt: skip
    return DicomInfo(words, iods, described)


def faults(values):
    """What dicom-validator finds: fields that are missing or empty, or that the kind of file does not have."""
    found = IODValidator(values, standard(), log_level=logging.CRITICAL, suppress_vr_warnings=True).validate()
    return sorted(
        f"{keyword_for_tag(tag.tag)}: {error.code.name}"
        for errors in found.module_errors.values() for tag, error in errors.items()
    )  # fmt: skip


def jpeg(frame, **options):
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=98, subsampling=0, **options)
    return out.getvalue()


def save(values, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    implicit = values.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2"
    pydicom.dcmwrite(path, values, enforce_file_format=True, implicit_vr=implicit, little_endian=True)
    return path


def still(path, frame=None, **options):
    """A single picture."""
    keys = ("patient", "study", "series", "modality", "sop_class")
    values = base(**{k: options.pop(k) for k in keys if k in options})
    pixels = picture() if frame is None else frame
    kinds = {k: options.pop(k) for k in ("photometric", "syntax", "bits", "signed") if k in options}
    with_pixels(values, pixels[None], **kinds)
    for name, value in options.items():
        setattr(values, name, value)
    return save(values, path)


def region(x0, y0, x1, y1, data_type=1, delta=0.01):
    out = Dataset()
    out.RegionSpatialFormat, out.RegionDataType, out.RegionFlags = 1, data_type, 0
    out.RegionLocationMinX0, out.RegionLocationMinY0 = x0, y0
    out.RegionLocationMaxX1, out.RegionLocationMaxY1 = x1, y1
    out.PhysicalUnitsXDirection = out.PhysicalUnitsYDirection = 3
    out.PhysicalDeltaX = out.PhysicalDeltaY = delta
    return out


def slices(
    folder,
    volume,
    *,
    series="1.2.3.1.1",
    orientation=(1, 0, 0, 0, 1, 0),
    origin=(-10.0, -20.0, 5.0),
    spacing=2.5,
    pixel=(0.8, 0.7),
    modality="CT",
    patient="P1",
    study="1.2.3.1",
    order=None,
    change=None,
):
    """A series: `volume` `(slices, rows, columns)` in Hounsfield units, written in the given order."""
    normal = np.cross(orientation[:3], orientation[3:])
    numbers = range(len(volume)) if order is None else order
    for name, k in enumerate(numbers):
        values = base(CT, patient, study, series, modality)
        stored = np.asarray(volume[k]).astype(np.int16) + 1024
        with_pixels(values, stored[None].astype(np.uint16), bits=12)
        values.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        values.ImagePositionPatient = [float(v) for v in np.array(origin) + k * spacing * normal]
        values.ImageOrientationPatient = list(orientation)
        values.PixelSpacing = list(pixel)
        values.SliceThickness = spacing
        values.RescaleSlope, values.RescaleIntercept = 1, -1024
        values.InstanceNumber = name + 1
        values.FrameOfReferenceUID, values.PositionReferenceIndicator = "1.2.3.9", ""
        values.KVP, values.AcquisitionNumber = 120, 1
        if change is not None:
            change(values, k)
        save(values, folder / f"{name:04d}.dcm")


def segmentation(path, folder, mask):
    """A DICOM segmentation of a series; `mask` `(slices, rows, columns)` in the order of the positions."""
    files = [pydicom.dcmread(p) for p in sorted(folder.glob("*.dcm"))]
    files.sort(key=lambda v: float(v.ImagePositionPatient[2]))
    code = highdicom.sr.CodedConcept("123037004", "SCT", "Anatomical Structure")
    numbers = sorted(set(np.unique(mask)) - {0})
    described = [
        highdicom.seg.SegmentDescription(
            int(n), f"part {n}", code, code, highdicom.seg.SegmentAlgorithmTypeValues.MANUAL
        )
        for n in numbers
    ]
    made = highdicom.seg.Segmentation(
        files, mask.astype(np.uint8), highdicom.seg.SegmentationTypeValues.BINARY, described, generate_uid(), 1,
        generate_uid(), 1, "Maker", "Model", "1", "1",
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path)
