"""Files that were made to do harm: bombs in every container, names of other folders, huge headers, hostile pickles."""

import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import dicom_files
import numpy as np
import pydicom
import pytest
import tifffile
import tiny
from PIL import Image

import deblur_mae_jax as dm
from deblur_mae_jax.data import dataset, dicom_file, dicom_pixels, table, volume_file
from deblur_mae_jax.data.decode import Decoder
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.weight_formats import files


def chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width=40, height=40, extra=b"", rows=None):
    rows = b"\0" * (41 * 40) if rows is None else rows
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def jpeg(width, height):
    out = io.BytesIO()
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(out, "JPEG")
    data = bytearray(out.getvalue())
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def tiff(width=40, height=40, loop=False, counts=1600, big=False):
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, 1), (262, 3, 1), (273, 4, 8), (277, 3, 1),
            (278, 4, height), (279, 4, counts)]  # fmt: skip
    if big:
        body = b"".join(struct.pack("<HHQQ", t, k, 1, v) for t, k, v in tags)
        return b"II+\0\x08\0\0\0" + struct.pack("<Q", 16) + struct.pack("<Q", len(tags)) + body + struct.pack("<Q", 0)
    start = 8 + 1600
    body = b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in tags)
    following = start if loop else 0
    data = b"II*\0" + struct.pack("<I", start) + bytes(1600)
    return data + struct.pack("<H", len(tags)) + body + struct.pack("<I", following)


def nifti(dims, offset=352.0, datatype=4, bits=16, voxels=b""):
    head = bytearray(348)
    struct.pack_into("<i", head, 0, 348)
    struct.pack_into("<8h", head, 40, *dims, *[1] * (8 - len(dims)))
    struct.pack_into("<hh", head, 70, datatype, bits)
    struct.pack_into("<8f", head, 76, 1, 1, 1, 1, 0, 0, 0, 0)
    struct.pack_into("<f", head, 108, offset)
    struct.pack_into("<hh", head, 252, 1, 1)
    struct.pack_into("<12f", head, 280, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    head[344:348] = b"n+1\0"
    return bytes(head) + bytes(4) + voxels


def webp_canvas(side):
    body = b"VP8X" + struct.pack("<I", 10) + bytes(4) + (side - 1).to_bytes(3, "little") * 2
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body + b"VP8 " + struct.pack("<I", 10) + bytes(10)


BOMB = zlib.compress(bytes(200_000_000), 9)
IMAGES = {
    "bomb.png": (png(60_000, 60_000), "pixels"),
    "wide.png": (png(2**31 - 1, 16), "pixels|cannot be opened"),
    "text.png": (png(extra=chunk(b"zTXt", b"Comment\0\0" + BOMB)), "cannot be opened|damaged"),
    "profile.png": (png(extra=chunk(b"iCCP", b"p\0\0" + BOMB), rows=b"x"), "damaged|cannot be opened"),
    "empty_rows.png": (png(rows=b""), "damaged|cannot be opened"),
    "frames.gif": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(3) + b";", "pixels|not an image|cannot"),
    "huge.bmp": (
        b"BM" + bytes(8) + struct.pack("<IIiiHHIIiiII", 54, 40, 2**30, 2**30, 1, 24, 0, 0, 0, 0, 0, 0),
        "pixels|cannot"),
    "negative.bmp": (
        b"BM" + bytes(8) + struct.pack("<IIiiHHIIiiII", 54, 40, -5, 40, 1, 24, 0, 0, 0, 0, 0, 0),
        "pixels|cannot|not"),
    "canvas.webp": (webp_canvas(16383), "not an image|pixels|cannot"),
    "huge.ppm": (b"P6\n99999 99999\n255\n" + bytes(99), "pixels"),
    "huge16.ppm": (b"P6\n4000 4000\n65535\n" + bytes(99), "damaged"),
    "number.pgm": (b"P5\n" + b"9" * 5000 + b" 3\n255\n", "cannot be opened|not an image|pixels"),
    "huge.jpg": (jpeg(65500, 65500), "pixels"),
    "huge.tif": (tiff(2**31 - 1, 2**31 - 1), "pixels|cannot|damaged"),
    "loop.tif": (tiff(loop=True, width=2**20, height=2**10), "pixels"),
    "big.tif": (tiff(2**40, 2**40, big=True), "pixels|cannot|damaged|not an image"),
    "deep.tif": (tifffile.__name__.encode(), "not an image"),
    "archive.png": (b"PK\x03\x04" + bytes(99), "a ZIP archive"),
    "gzip.png": (gzip.compress(bytes(99)), "a gzip file"),
    "page.png": (b"%PDF-1.7" + bytes(99), "a PDF file"),
    "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "entities.png": (b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "bbb">]><svg/>', "not an image"),
    "photoshop.png": (b"8BPS" + bytes(99), "a Photoshop file"),
    "pointer.png": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
}  # fmt: skip


@pytest.mark.parametrize("name", IMAGES)
def test_images(tmp_path, name):
    content, reason = IMAGES[name]
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    with pytest.raises(BadImage, match=reason) as caught:
        Decoder()(tmp_path / name)
    assert "\n" not in str(caught.value) and tracemalloc.get_traced_memory()[1] < 3e8
    tracemalloc.stop()


VOLUMES = {
    "huge.nii": (nifti((3, 30000, 30000, 30000)), "over data.max_pixels"),
    "overflow.nii": (nifti((7, *[32767] * 7)), "7 dimensions"),
    "negative.nii": (nifti((3, -5, 5, 5)), "no voxels|damaged"),
    "offset.nii": (nifti((3, 5, 5, 5), offset=2e9, voxels=bytes(250)), "start at byte"),
    "inside.nii": (nifti((3, 5, 5, 5), offset=0, voxels=bytes(250)), "start at byte 0"),
    "offset.nii.gz": (gzip.compress(nifti((3, 5, 5, 5), offset=2e9)), "start at byte"),
    "type.nii": (nifti((3, 5, 5, 5), datatype=9999, voxels=bytes(250)), "damaged"),
    "short.nii": (nifti((3, 50, 50, 50)), "damaged"),
    "text.nii": (b"hello", "not a NIfTI"),
    "huge.nrrd": (
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 100000 100000 100000\nencoding: raw\n\n",
        "over data.max|damaged"),
    "above.nrrd": (
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: ../secret.raw\n\n",
        "another folder"),
    "list.nhdr": (
        b"NRRD0004\ntype: short\ndimension: 3\nsizes: 2 2 2\nencoding: raw\ndata file: LIST\n/etc/passwd\n",
        "a list of other files"),
    "system.mhd": (
        b"NDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\nElementDataFile = /etc/passwd\n",
        "another folder"),
    "above.mhd": (
        b"NDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\nElementDataFile = ../x.raw\n",
        "another folder"),
    "pattern.mhd": (
        b"NDims = 3\nDimSize = 2 2 2\nElementType = MET_SHORT\nElementDataFile = x%d.raw 1 9 1\n",
        "a list of other files"),
    "huge.mha": (
        b"NDims = 3\nDimSize = 99999 99999 99999\nElementType = MET_SHORT\nElementDataFile = LOCAL\n",
        "over data.max|damaged"),
    "alone.img": (bytes(400), "its header"),
}  # fmt: skip


@pytest.mark.parametrize("name", VOLUMES)
def test_volumes(tmp_path, name):
    content, reason = VOLUMES[name]
    (tmp_path / name).write_bytes(content)
    tracemalloc.start()
    with pytest.raises(BadImage, match=reason) as caught:
        volume_file.open_volume(str(tmp_path / name), 5_000_000).values()
    assert "\n" not in str(caught.value) and tracemalloc.get_traced_memory()[1] < 3e8
    tracemalloc.stop()


def dicom(tmp_path, change):
    path = dicom_files.still(tmp_path / "a.dcm")
    values = pydicom.dcmread(path)
    change(values)
    values.save_as(path)
    return str(path)


def read_dicom(path):
    header = dicom_file.header(path)
    return dicom_pixels.FrameReader(max_pixels=10_000_000).read(header, header.frames - 1)


def nested(values):
    inner = pydicom.Dataset()
    for _ in range(2000):
        outer = pydicom.Dataset()
        outer.ReferencedSeriesSequence = [inner]
        inner = outer
    return inner


def test_dicom_sizes_frames_and_streams(tmp_path, monkeypatch):
    with pytest.raises(BadImage, match=r"over data\.max_pixels"):
        read_dicom(dicom(tmp_path, lambda v: setattr(v, "Rows", 65535) or setattr(v, "Columns", 65535)))
    with pytest.raises(BadImage, match="damaged"):
        read_dicom(dicom(tmp_path, lambda v: setattr(v, "NumberOfFrames", 2**31 - 1)))
    path = tmp_path / "deflated.dcm"
    values = dicom_files.with_pixels(dicom_files.base(), np.zeros((1, 2000, 3000), np.uint8))
    values.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    pydicom.dcmwrite(path, values, enforce_file_format=True)
    del values
    assert path.stat().st_size < 20_000 and dicom_file.header(str(path)).rows == 2000
    monkeypatch.setattr(dicom_file, "MAX_INFLATED", 1_000_000)
    with pytest.raises(BadImage, match="when it is inflated"):
        dicom_file.header(str(path))


def test_a_dicom_file_with_deep_sequences_is_refused(tmp_path):
    path = tmp_path / "a.dcm"
    dicom_files.still(path)
    element = struct.pack("<HH2sHI", 0x0008, 0x1115, b"SQ", 0, 0xFFFFFFFF) + struct.pack(
        "<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF
    )
    content = path.read_bytes()
    at = content.index(struct.pack("<HH", 0x0010, 0x0010))
    path.write_bytes(content[:at] + element * 20000 + content[at:])
    with pytest.raises(BadImage):
        dicom_file.header(str(path))


class Harm:
    def __reduce__(self):
        return os.system, ("touch /tmp/harm_was_done",)


def weights(header, length=None, body=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


WEIGHTS = {
    "length.safetensors": (weights({}, length=2**62), "damaged or not"),
    "huge.safetensors": (
        weights({"a": {"dtype": "F32", "shape": [10**12], "data_offsets": [0, 4 * 10**12]}}),
        "damaged or not"),
    "outside.safetensors": (
        weights({"a": {"dtype": "F32", "shape": [1], "data_offsets": [900, 904]}}, body=bytes(4)),
        "damaged or not"),
    "overlap.safetensors": (
        weights({n: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}, body=bytes(4)),
        "damaged or not"),
    "text.safetensors": (b"x" * 40, "damaged or not"),
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    "pickle.pth": (pickle.dumps(Harm()), "more than tensors|need PyTorch|cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights(tmp_path, name):
    content, reason = WEIGHTS[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=reason) as caught:
        files.read(tmp_path / name, "config.init_from")
    assert "\n" not in str(caught.value) and not Path("/tmp/harm_was_done").exists()


def test_an_archive_of_weights_that_grows_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("../../archive/data/0", bytes(50_000_000))
    with pytest.raises(UserError, match="when it is unpacked"):
        files._refuse_bomb(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "model.safetensors.index.json"])
def test_shards_of_other_folders_are_refused(tmp_path, name):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match=r"in another folder or no weight file"):
        files.read(tmp_path, "f")


def test_a_packed_set_that_names_other_folders_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    Image.fromarray(np.arange(1600, dtype=np.uint8).reshape(40, 40)).save(tmp_path / "set" / "a.png")
    dm.pack(tmp_path / "set", tmp_path / "packed")
    facts = json.loads((tmp_path / "packed" / "dataset.json").read_text())
    facts["shards"] = {"../../etc/passwd": ""}
    (tmp_path / "packed" / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(UserError, match="which is in another folder"):
        dataset.load_source(tiny.resolved("quickstart", data__name="packed", data__root=str(tmp_path / "packed")))


def test_tars_with_names_of_other_folders_write_nothing(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name in ("../../evil.png", "/etc/evil.png"):
            member = tarfile.TarInfo(name)
            member.size = len(png())
            tar.addfile(member, io.BytesIO(png()))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    source = dataset.load_source(
        tiny.resolved("quickstart", data__name="webdataset", data__root=str(tmp_path / "a.tar"))
    )
    assert len(source) == 2 and not (tmp_path.parent / "evil.png").exists()


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/mem", "."])
def test_paths_of_a_csv_that_are_no_files(tmp_path, path):
    with pytest.raises((BadImage, OSError)):
        Decoder()(Path(path))
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadImage, match="empty file"):
        Decoder()(tmp_path / "pipe.png")


def test_tables_with_huge_cells_and_headers(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("path,label\n" + "x" * 500_000 + ",b\n")
    found = table.Finder(tmp_path, [".png"]).path(table.read(path, "all").rows[0]["path"])
    with pytest.raises((BadImage, OSError)):
        Decoder()(Path(found))
    path.write_text(",".join(f"c{i}" for i in range(20_000)) + "\n")
    with pytest.raises(UserError, match="no column path") as caught:
        table.read(path, "all")
    assert len(str(caught.value)) < 1000
