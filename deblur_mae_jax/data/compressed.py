"""The checksums of compressed volumes, which nibabel and SimpleITK do not compare: damaged voxels would be read."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO

PIECE = 1 << 20


def drain(stream: Any) -> None:
    """Read a gzip stream to its end, where its checksum is compared. Raises `OSError`, `EOFError` or `zlib.error`."""
    while stream.read(PIECE):
        pass


def check(path: str) -> None:
    """Decompress a `.mgz`, MetaImage or NRRD file once. Raises `OSError`, `EOFError` or `zlib.error` if it is damaged.

    Files that are not compressed hold no checksum and are not read.
    """
    with open(path, "rb") as file:
        if path.lower().endswith((".mha", ".mhd")):
            _check_metaimage(Path(path), file)
        elif path.lower().endswith((".nrrd", ".nhdr")):
            _check_nrrd(Path(path), file)
        else:
            with gzip.open(file) as stream:
                drain(stream)


def _check_metaimage(path: Path, file: BinaryIO) -> None:
    compressed, data = False, ""
    for line in iter(file.readline, b""):
        name, _, value = (part.strip() for part in line.decode("latin-1").partition("="))
        compressed |= name == "CompressedData" and value.lower() == "true"
        if name == "ElementDataFile":  # the last line of the header
            data = value
            break
    if not compressed:
        return
    if data in ("LOCAL", "Local", "local"):
        _inflate(file)
    else:
        with open(path.with_name(data), "rb") as other:
            _inflate(other)


def _inflate(file: BinaryIO) -> None:
    """Decompress a zlib stream to its end."""
    # 32: MetaIO also writes the header of gzip.
    decoder: Any = zlib.decompressobj(32 + zlib.MAX_WBITS)
    for piece in iter(lambda: file.read(PIECE), b""):
        decoder.decompress(piece)
        if decoder.eof:
            return
    raise EOFError("the compressed voxels end too early")


def _check_nrrd(path: Path, file: BinaryIO) -> None:
    header = []
    for line in iter(file.readline, b""):
        if not line.strip():  # an empty line ends the header
            break
        header.append(line.decode("latin-1").strip())
    text = "\n".join(header)
    if not re.search(r"^encoding: *(gzip|gz)$", text, re.I | re.M):
        return
    elsewhere = re.search(r"^data ?file: *(\S.*)$", text, re.I | re.M)
    if elsewhere:
        with gzip.open(path.with_name(elsewhere[1].strip())) as stream:
            drain(stream)
    else:
        with gzip.open(file) as stream:
            drain(stream)
