"""One image, or one volume, as the bytes of a record of a packed set.

A record is a JSON header of its parts, and the parts: the image, and its mask where it has one.
"""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import unknown

ENCODINGS = ("keep", "png", "jpeg95", "raw")


@dataclasses.dataclass(frozen=True)
class Parts:
    """The parts of a record.

    image: the image in the encoding of the set.
    mask: the mask on the grid of the image, losslessly compressed; b"" without one.
    truth: the mask on the original grid, if that differs.
    facts: shape, type and grid, as JSON values.
    """

    image: bytes
    mask: bytes = b""
    truth: bytes = b""
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)


def check_encoding(encode: str) -> None:
    """Raise `UserError` for an encoding that does not exist."""
    if encode not in ENCODINGS:
        raise unknown("--encode", encode, ENCODINGS)


def join(parts: Parts) -> bytes:
    """The bytes of a record, with a checksum."""
    body = parts.image + parts.mask + parts.truth
    header = {"sizes": [len(parts.image), len(parts.mask), len(parts.truth)], "crc": zlib.crc32(body), **parts.facts}
    text = json.dumps(header, sort_keys=True).encode()
    return struct.pack("<I", len(text)) + text + body


def split(record: bytes) -> Parts:
    """The parts of a record. Raises `BadImage` if it is damaged."""
    try:
        (length,) = struct.unpack_from("<I", record)
        facts = json.loads(record[4 : 4 + length])
        sizes, crc = facts.pop("sizes"), facts.pop("crc")
        body = record[4 + length :]
        if sum(sizes) != len(body) or zlib.crc32(body) != crc:
            raise ValueError("checksum")
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise BadImage("damaged: a record of the packed set is not as it was written; pack the set again") from error
    first, second = sizes[0], sizes[0] + sizes[1]
    return Parts(body[:first], body[first:second], body[second:], facts)


def encode_image(pixels: np.ndarray, encode: str) -> bytes:
    """uint8 `(H, W, C)` as PNG, JPEG of quality 95, or plain bytes."""
    if encode == "raw":
        return pixels.tobytes()
    out = io.BytesIO()
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    if encode == "jpeg95":
        image.save(out, "JPEG", quality=95)
    else:
        image.save(out, "PNG", compress_level=4)
    return out.getvalue()


def decode_image(content: bytes, encode: str, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `encode_image`."""
    if encode == "raw":
        return np.frombuffer(content, np.uint8).reshape(shape)
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def compress(array: np.ndarray) -> bytes:
    """An array of any shape, losslessly by blosc2 (Zstandard, bytes shuffled by their size)."""
    import imagecodecs

    flat = np.ascontiguousarray(array)
    return bytes(
        imagecodecs.blosc2_encode(
            flat.tobytes(), compressor="zstd", level=5, typesize=flat.dtype.itemsize, numthreads=1
        )
    )


def decompress(content: bytes, dtype: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The inverse of `compress`."""
    import imagecodecs

    return np.frombuffer(imagecodecs.blosc2_decode(content, numthreads=1), dtype).reshape(shape)
