"""Good files of every format that the library reads, the damage done to them, and one reader for each format."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

IMAGES = ("png", "png16", "jpeg", "tiff", "tiff16", "gif", "bmp", "webp", "ppm", "jp2")
VOLUMES = ("nifti", "nifti_gz", "nrrd", "mha")
FORMATS = (*IMAGES, *VOLUMES, "dicom", "dicom_jpeg", "csv", "safetensors",
           *(["pth"] if importlib.util.find_spec("torch") else []))  # fmt: skip
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def picture(height=40, width=48):
    """A gray picture with all levels."""
    return np.rint(np.linspace(0, 255, height * width)).reshape(height, width).astype(np.uint8)


def good_file(kind: str, folder: Path) -> Path:
    """Write an undamaged file of a format."""
    folder = folder / kind
    folder.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(picture())
    deep = picture().astype(np.uint16) * 16
    if kind in ("png", "jpeg", "bmp", "webp", "ppm", "gif", "tiff", "jp2"):
        suffix = {"jpeg": "jpg", "tiff": "tif"}.get(kind, kind)
        path = folder / f"a.{suffix}"
        more = {"compression": "tiff_lzw"} if kind == "tiff" else {}
        more |= {"save_all": True, "append_images": [image]} if kind == "gif" else {}
        (image.convert("RGB") if kind == "ppm" else image).save(path, **more)
    elif kind == "png16":
        import imagecodecs

        path = folder / "a.png"
        path.write_bytes(imagecodecs.png_encode(np.dstack([deep] * 3)))
    elif kind == "tiff16":
        import tifffile

        path = folder / "a.tif"
        tifffile.imwrite(path, deep, photometric="miniswhite", compression="zlib")
    elif kind.startswith("nifti"):
        import nibabel as nib

        path = folder / ("a.nii.gz" if kind.endswith("gz") else "a.nii")
        nib.save(
            nib.Nifti1Image(np.arange(12 * 10 * 8, dtype=np.int16).reshape(12, 10, 8), np.diag([1, 2, 3.0, 1])), path
        )
    elif kind in ("nrrd", "mha"):
        import SimpleITK as sitk

        path = folder / f"a.{kind}"
        sitk.WriteImage(sitk.GetImageFromArray(np.arange(960, dtype=np.int16).reshape(8, 10, 12)), path, kind == "nrrd")
    elif kind.startswith("dicom"):
        path = _dicom(folder / "a.dcm", kind == "dicom_jpeg")
    elif kind == "csv":
        path = folder / "a.csv"
        path.write_text("path,label,group,split\n" + "".join(f"a{i}.png,b,p{i},train\n" for i in range(40)))
    elif kind == "safetensors":
        from safetensors.numpy import save_file

        path = folder / "a.safetensors"
        save_file(_weights(), path)
    else:
        import torch

        path = folder / "a.pth"
        torch.save({"model": {k: torch.tensor(v) for k, v in _weights().items()}}, path)
    return path


def _weights():
    random = np.random.default_rng(0)
    draw = lambda *shape: random.normal(0, 0.02, shape).astype(np.float32)
    out = {"cls_token": draw(1, 1, 16), "pos_embed": draw(1, 17, 16), "patch_embed.proj.weight": draw(16, 1, 8, 8),
           "patch_embed.proj.bias": draw(16), "norm.weight": draw(16), "norm.bias": draw(16)}  # fmt: skip
    for name, (rows, columns) in {"attn.qkv": (48, 16), "attn.proj": (16, 16), "mlp.fc1": (64, 16),
                                  "mlp.fc2": (16, 64)}.items():  # fmt: skip
        out[f"blocks.0.{name}.weight"], out[f"blocks.0.{name}.bias"] = draw(rows, columns), draw(rows)
    return out | {f"blocks.0.{n}.{w}": draw(16) for n in ("norm1", "norm2") for w in ("weight", "bias")}


def _dicom(path: Path, compressed: bool) -> Path:
    import io

    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.encaps import encapsulate

    values = Dataset()
    values.file_meta = FileMetaDataset()
    values.SOPClassUID = values.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    values.SOPInstanceUID = values.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    values.StudyInstanceUID, values.SeriesInstanceUID, values.Modality, values.PatientID = "1.2", "1.3", "US", "P"
    values.Rows, values.Columns = picture().shape
    values.SamplesPerPixel, values.PhotometricInterpretation = 1, "MONOCHROME2"
    values.BitsAllocated = values.BitsStored = 8
    values.HighBit, values.PixelRepresentation = 7, 0
    values.WindowCenter, values.WindowWidth = 127, 255
    region = Dataset()
    region.RegionSpatialFormat = region.RegionDataType = 1
    region.RegionLocationMinX0 = region.RegionLocationMinY0 = 2
    region.RegionLocationMaxX1 = region.RegionLocationMaxY1 = 36
    values.SequenceOfUltrasoundRegions = [region]
    if compressed:
        out = io.BytesIO()
        Image.fromarray(picture()).save(out, "JPEG")
        values.PixelData = encapsulate([out.getvalue()])
        values["PixelData"].is_undefined_length = True
        values.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.50"
    else:
        values.PixelData = picture().tobytes()
        values.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    pydicom.dcmwrite(path, values, enforce_file_format=True)
    return path


def mutated(good: Path, folder: Path, random: np.random.Generator) -> Path:
    """Write a damaged copy of a file into a folder of its own."""
    content = bytearray(good.read_bytes())
    for _ in range(int(random.integers(1, 4))):
        if not content:
            break
        at = int(random.integers(0, len(content)))
        # The first bytes decide most, so half of the damage is there.
        at = int(random.integers(0, min(len(content), 400))) if random.random() < 0.5 else at
        what, size = int(random.integers(0, 7)), int(random.integers(1, 64))
        if what == 0:
            content[at] ^= 1 << int(random.integers(0, 8))
        elif what == 1:
            content[at : at + size] = random.integers(0, 256, size).astype(np.uint8).tobytes()
        elif what == 2:
            del content[at : at + size]
        elif what == 3:
            content[at:at] = content[at : at + size]
        elif what == 4:
            content[at : at + size] = bytes(size)
        elif what == 5:
            value = int(random.choice(EXTREMES))
            width = int(random.choice([1, 2, 4]))
            order = "little" if random.random() < 0.5 else "big"
            content[at : at + width] = (value & (256**width - 1)).to_bytes(width, order)
        else:
            del content[at:]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / good.name
    path.write_bytes(content)
    return path


def remove(path: Path) -> None:
    """Remove a damaged copy and its folder."""
    shutil.rmtree(path.parent, ignore_errors=True)


def read(kind: str, path: Path) -> str:
    """Read a file as a run would. Returns "read" or "refused"; other errors pass through."""
    from deblur_mae_jax.data.source import BadImage
    from deblur_mae_jax.errors import UserError

    try:
        _read(kind, path)
    except (BadImage, UserError) as error:
        assert str(error) and "\n" not in str(error), f"not one line: {error!r}"
        return "refused"
    return "read"


def _read(kind: str, path: Path) -> None:
    if kind in IMAGES:
        from deblur_mae_jax.data import image_files, masks
        from deblur_mae_jax.data.decode import Decoder
        from deblur_mae_jax.data.source import BadImage

        files = image_files.Files([str(path)], Decoder())
        reader = image_files.Masks([(str(path),)], files, masks.MaskFile())
        with contextlib.suppress(BadImage):
            reader.read(0)
        masks.looks_like_mask(str(path))
        files.header(0)
        pixels = files.read(0)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3
    elif kind in VOLUMES:
        from deblur_mae_jax.data.volume_reader import Volumes

        for modality in ("ct", "mr"):
            volume = Volumes([str(path)], [(str(path),)], [modality], (), (-1000.0, 1000.0), 5_000_000, "").read(0)
            assert np.isfinite(volume).all() and volume.ndim == 4
    elif kind.startswith("dicom"):
        from deblur_mae_jax.data import dicom_file, dicom_series
        from deblur_mae_jax.data.dicom_pixels import FrameReader
        from deblur_mae_jax.data.source import BadImage

        dicom_file.is_dicom(str(path))
        header = dicom_file.header(str(path))
        dicom_series.build([header])
        for frame in dicom_file.chosen_frames("uniform(2)", header):
            FrameReader(max_pixels=5_000_000).read(header, frame)
    elif kind == "csv":
        from deblur_mae_jax.data import table

        found = table.read(path, "all")
        finder = table.Finder(path.parent, [".png"])
        for row in found.rows:
            finder.path(row["path"])
    else:
        from deblur_mae_jax.pretrained import trained_network

        trained_network.load(path)


def warm_up() -> None:
    """Import everything that readers import, so that its memory is not counted."""
    import imagecodecs  # noqa: F401
    import nibabel  # noqa: F401
    import pydicom  # noqa: F401
    import SimpleITK  # noqa: F401
    import tifffile  # noqa: F401

    for name in ("torch",):
        if importlib.util.find_spec(name):
            importlib.import_module(name)
    sys.setrecursionlimit(1000)
