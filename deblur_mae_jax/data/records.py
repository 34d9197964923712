"""One image, or one volume, as the bytes of records of a packed set.

A record is a JSON header of its parts, and the parts: the image, and its mask where it has one. The voxels of a volume
are in records of their own, which follow: one for each block of 64^3, so that a crop reads the blocks it needs.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image

from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import unknown

ENCODINGS = ("keep", "png", "jpeg95", "raw")
BLOCK = 64  # side of a block of a volume, in voxels


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


def blocks(volume: np.ndarray) -> Iterator[bytes]:
    """The records of the blocks of a volume `(D, H, W, C)`, in C order."""
    for corner in itertools.product(*(range(0, side, BLOCK) for side in volume.shape[:3])):
        yield join(Parts(compress(volume[tuple(slice(first, first + BLOCK) for first in corner)])))


@dataclasses.dataclass(frozen=True)
class Blocks:
    """A volume whose blocks are read when they are indexed.

    shape: (D, H, W, C).
    dtype: type of its voxels.
    side: side of a block in voxels.
    fetch: `numbers of blocks -> their records`.
    """

    shape: tuple[int, ...]
    dtype: Any
    side: int
    fetch: Callable[[list[int]], list[bytes]]

    def __getitem__(self, part: tuple[slice, ...]) -> np.ndarray:
        """The voxels of three slices without steps. Raises `BadImage`."""
        ends = [s.indices(n)[:2] for s, n in zip(part, self.shape, strict=False)]
        counts = [-(-n // self.side) for n in self.shape[:3]]
        wanted = list(itertools.product(*(range(a // self.side, -(-b // self.side)) for a, b in ends)))
        found = self.fetch([int(np.ravel_multi_index(place, counts)) for place in wanted])
        out = np.empty((*(b - a for a, b in ends), self.shape[3]), self.dtype)
        for place, record in zip(wanted, found, strict=True):
            first = [number * self.side for number in place]
            last = [min(a + self.side, n) for a, n in zip(first, self.shape, strict=False)]
            shape = (*(b - a for a, b in zip(first, last, strict=True)), self.shape[3])
            block = decompress(split(record).image, self.dtype, shape)
            low = [max(a, edge[0]) for a, edge in zip(first, ends, strict=True)]
            high = [min(b, edge[1]) for b, edge in zip(last, ends, strict=True)]
            target = tuple(slice(a - e[0], b - e[0]) for a, b, e in zip(low, high, ends, strict=True))
            out[target] = block[tuple(slice(a - f, b - f) for a, b, f in zip(low, high, first, strict=True))]
        return out
