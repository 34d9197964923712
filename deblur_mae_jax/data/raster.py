"""Open image files with Pillow, and find those that Pillow would read wrongly (see `deep_images.py`)."""

from __future__ import annotations

import dataclasses
import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import one_line

# Headers are checked by `opened` before anything is decoded, so Pillow's own limit is not needed.
Image.MAX_IMAGE_PIXELS = None
# An image file that ends in so many zeros was not written to its end.
ZEROS = 32
# The decoders of Pillow that are used; all others stay closed to files from outside.
FORMATS = ("PNG", "JPEG", "BMP", "DIB", "TIFF", "GIF", "WEBP", "PPM", "JPEG2000")
EXIF_ORIENTATION = 0x0112
LOSSY = ("JPEG", "MPO", "JPEG2000")
# Photometric interpretations of TIFF with 8 bits that Pillow reads: gray, RGB, palette, CMYK, YCbCr.
PILLOW_READS = (0, 1, 2, 3, 5, 6, None)
TIFF_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
# What a file is, by its first bytes, for the reason why it is left out.
STRANGERS = (
    (b"version https://git-lfs", "a Git LFS pointer instead of the file itself: run `git lfs pull`"),
    (b"%PDF", "a PDF file"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy file"),
    (b"8BPS", "a Photoshop file"),
    (b"NRRD", "a volume (NRRD)"),
)
# Pillow's remarks on damaged metadata, which is not used.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*")
VIDEOS = (".mpg", ".mpeg", ".mp4", ".avi", ".mov", ".mkv", ".wmv", ".webm", ".m4v")


@dataclasses.dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    width, height: in pixels, as stored.
    orientation: EXIF's number, 1 to 8; 5 to 8 swap the sides.
    frames: number of frames or pages.
    lossy: whether the file format changes pixel values.
    deep: whether the pixels must be read by `deep_images.read`, because Pillow loses some of them.
    applied: whether Pillow turns the pixels by itself, as it does for TIFF.
    white_is_small: whether small values are white, as TIFF's tag 262 may say.
    turn_unknown: whether the orientation is damaged, and taken as upright.
    """

    width: int
    height: int
    orientation: int
    frames: int
    lossy: bool
    deep: bool
    applied: bool = False
    white_is_small: bool = False
    turn_unknown: bool = False

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) after the orientation is applied."""
        return (self.width, self.height) if self.orientation in (5, 6, 7, 8) else (self.height, self.width)


def first_bytes(path: Path | bytes, count: int = 192) -> bytes:
    """The first bytes of a file."""
    if isinstance(path, bytes):
        return path[:count]
    with open(path, "rb") as file:
        return file.read(count)


def stranger(path: Path | bytes) -> str:
    """What a file is that is no image; "" if its first bytes do not say."""
    start = first_bytes(path)
    if start[128:132] == b"DICM":
        return "a DICOM file; read its folder with config.data.name=dicom, and a CSV of labels with config.data.labels"
    if start[344:348] in (b"n+1\0", b"ni1\0"):
        return "a volume (NIfTI)"
    return next((what for magic, what in STRANGERS if start.startswith(magic)), "")


@contextmanager
def opened(path: Path | bytes, max_pixels: int) -> Iterator[tuple[Header, Image.Image | None]]:
    """Open an image: its header, and the image of Pillow, or `None` if Pillow does not know it.

    max_pixels: larger images are refused before anything is decoded.
    Raises `BadImage`.
    """
    image = _open(path)
    if image is None:
        yield _tiff_header(path), None
        return
    if image.format == "TIFF" and _turn_of_tiff(image) != 1 and not isinstance(path, bytes):
        # Pillow maps an uncompressed file with its turned sides, which scrambles it; it reads bytes rightly.
        image.close()
        if path.stat().st_size > 32 * max_pixels:
            raise BadImage(f"{path.stat().st_size} bytes for a turned TIFF, too large for data.max_pixels={max_pixels}")
        image = _open(path.read_bytes())
        assert image is not None
    with image:
        if image.width * image.height > max_pixels:
            raise BadImage(f"{image.width} x {image.height} pixels, over data.max_pixels={max_pixels}")
        try:
            header = _header_of(image, path)
        except Exception as error:  # damaged tags
            raise BadImage(f"cannot be opened: {reason(error)}") from error
        yield header, image


def _open(path: Path | bytes) -> Image.Image | None:
    """Open an image with Pillow. Returns `None` for a TIFF that only tifffile can read. Raises `BadImage`."""
    try:
        if isinstance(path, bytes):
            if not path:
                raise BadImage("empty")
            return Image.open(io.BytesIO(path), formats=FORMATS)
        if path.stat().st_size == 0:
            raise BadImage("empty file (0 bytes)")
        return Image.open(path, formats=FORMATS)
    except UnidentifiedImageError as error:
        if first_bytes(path, 4) in TIFF_STARTS:
            return None
        suffix = "" if isinstance(path, bytes) else path.suffix.lower()
        what = stranger(path) or ("a video; extract its frames first" if suffix in VIDEOS else "")
        raise BadImage(what or "not an image, or damaged beyond recognition") from error
    except FileNotFoundError as error:
        raise BadImage("the file does not exist") from error
    except BadImage:
        raise
    except Exception as error:  # a header can be damaged in as many ways as the pixels
        raise BadImage(f"cannot be opened: {reason(error)}") from error


def _header_of(image: Image.Image, path: Path | bytes) -> Header:
    """The header of an image that Pillow has opened."""
    width, height = image.size
    tags = getattr(image, "tag_v2", None) if image.format == "TIFF" else None
    if tags is not None:
        width, height = int(tags.get(256, width)), int(tags.get(257, height))
        turn = _turn_of_tiff(image)
    else:
        turn = _turn_of_exif(image)
    return Header(
        width,
        height,
        turn if isinstance(turn, int) and 1 <= turn <= 8 else 1,
        _frames(image, tags),
        _is_lossy(image, tags, path),
        _is_deep(image, tags, path),
        applied=tags is not None,
        white_is_small=tags is not None and tags.get(262) == 0,
        turn_unknown=turn is None,
    )


def require_end_of_jpeg(path: Path | bytes) -> None:
    """Raise `BadImage` if a JPEG stream has no end marker, as after a copy that was interrupted.

    Where zeros follow, up to the full size of the file, decoders show the rest as gray without a word.
    """
    content = _content(path)
    if not content.startswith(b"\xff\xd8"):
        return
    place = 2
    while content[place : place + 1] == b"\xff":  # segments up to the first scan; thumbnails are inside of them
        if content[place + 1] in (0xDA, 0xFF):
            break
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    if content.find(b"\xff\xd9", place) < 0:
        raise BadImage("damaged: the JPEG ends early; was it copied completely?")


def require_end(path: Path | bytes) -> None:
    """Raise `BadImage` if the end of a compressed image is missing, as after a copy that was interrupted.

    Such a file often has its full size, with zeros at its end, which decoders show as black or gray without a word.
    """
    start = first_bytes(path, 12)
    content = b"" if start[:4] in TIFF_STARTS or start[:2] == b"BM" else _content(path)
    if content.startswith(b"\xff\xd8"):
        require_end_of_jpeg(content)
    elif content.startswith(b"\x89PNG"):
        _require_chunks(content)
    elif content[:4] in (b"RIFF", b"GIF8") and not content[-ZEROS:].strip(b"\0"):
        raise BadImage("damaged: the file ends in zeros; was it copied completely?")
    elif b"\xff\x4f\xff\x51" in content[:4096] and content.rfind(b"\xff\xd9") < 0:
        raise BadImage("damaged: the JPEG 2000 ends early; was it copied completely?")


def _content(path: Path | bytes) -> bytes:
    return path if isinstance(path, bytes) else path.read_bytes()


def _require_chunks(content: bytes) -> None:
    """Raise `BadImage` if a PNG lacks its last chunk, or the checksum of one with pixels is wrong."""
    place, kind = 8, b""
    while kind != b"IEND":
        length, kind = int.from_bytes(content[place : place + 4], "big"), content[place + 4 : place + 8]
        end = place + 8 + length
        if len(content) < end + (0 if kind == b"IEND" else 4) or not kind.isalpha():
            raise BadImage("damaged: the PNG ends early; was it copied completely?")
        if kind in (b"IDAT", b"PLTE"):
            sum_ = zlib.crc32(content[place + 4 : end])
            if sum_ != int.from_bytes(content[end : end + 4], "big"):
                raise BadImage("damaged: a checksum of the PNG is wrong; was it copied completely?")
        place = end + 4


def largest_gray(path: Path | bytes, image: Image.Image) -> int:
    """The number in the file that Pillow reads as the gray level 255: 3 or 15 for 2 or 4 bits, a PGM's own maximum.

    255 for files whose numbers Pillow does not change.
    """
    start = first_bytes(path, 26)
    if start.startswith(b"\x89PNG") and start[25] == 0 and start[24] in (2, 4):
        return int(2 ** start[24] - 1)
    if image.format == "TIFF" and image.mode == "L":
        bits = image.tag_v2.get(258, (8,))  # type: ignore[attr-defined]
        return int(2 ** bits[0] - 1) if bits[:1] in ((2,), (4,)) else 255
    if image.format == "PPM" and image.mode == "L" and start[:2] in (b"P2", b"P5"):
        return min(pnm_header(path)[2], 255)
    return 255


def _turn_of_tiff(image: Image.Image) -> int:
    turn = image.tag_v2.get(274, 1)  # type: ignore[attr-defined]
    return turn if isinstance(turn, int) and 1 <= turn <= 8 else 1


def _turn_of_exif(image: Image.Image) -> Any:
    """The orientation; `None` if it cannot be read."""
    try:
        return image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:  # damaged metadata beside good pixels
        return None


def _frames(image: Image.Image, tags: Any) -> int:
    """The number of frames, also of ImageJ's stacks, which have one TIFF directory, and of volumetric TIFFs."""
    frames = int(getattr(image, "n_frames", 1))
    if tags is None:
        return frames
    found = re.match(r"ImageJ=[^\n]*\n(?:.*\n)*?images=(\d+)", str(tags.get(270, "")))
    depth = tags.get(32997, 1)
    return max(frames, int(found[1]) if found else 1, depth if isinstance(depth, int) else 1)


def _is_lossy(image: Image.Image, tags: Any, path: Path | bytes) -> bool:
    if tags is not None:
        return tags.get(259) in (6, 7, 33003, 33005, 34712)  # JPEG and JPEG 2000 inside TIFF
    if image.format == "WEBP":
        return b"VP8L" not in first_bytes(path, 64)
    return image.format in LOSSY


def _is_deep(image: Image.Image, tags: Any, path: Path | bytes) -> bool:
    if tags is not None:
        bits = tags.get(258, (1,))
        bits = bits if isinstance(bits, tuple) else (bits,)
        signs = tags.get(339, (1,))
        signed = any(sign != 1 for sign in (signs if isinstance(signs, tuple) else (signs,)))
        return max(bits) > 8 or signed or image.mode == "LAB" or len(bits) == 2 or tags.get(262) not in PILLOW_READS
    if image.format == "PNG":
        start = first_bytes(path, 26)
        return start[24] == 16 and (start[25] != 0 or "transparency" in image.info)
    if image.format == "PPM":
        return image.mode == "RGB" and pnm_header(path)[2] > 255
    return image.format == "JPEG2000" and image.mode in ("RGB", "RGBA", "LA") and _jp2_bits(path) > 8


def _tiff_header(path: Path | bytes) -> Header:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its remarks name no file
    try:
        with tifffile.TiffFile(io.BytesIO(path) if isinstance(path, bytes) else path) as file:
            page: Any = file.pages[0]
            turn = int(page.tags.valueof(274) or 1)
            turn = turn if 1 <= turn <= 8 else 1
            return Header(int(page.imagewidth), int(page.imagelength), turn, len(file.pages), False, True)
    except Exception as error:
        raise BadImage(f"cannot be opened: {reason(error)}") from error


def pnm_header(path: Path | bytes) -> tuple[int, int, int, int]:
    """Width, height and maximum of a PGM or PPM file, and where its pixels start."""
    content = first_bytes(path, 4096)
    found = re.match(rb"P[2356]" + rb"(?:\s|#[^\n]*\n)+(\d+)" * 3 + rb"\s", content)
    if found is None:
        raise BadImage("damaged: its header has no width, height and maximum")
    return int(found[1]), int(found[2]), int(found[3]), found.end()


def _jp2_bits(path: Path | bytes) -> int:
    """Bits per channel of a JPEG 2000 file, from its SIZ marker; 8 if there is none near the start."""
    content = first_bytes(path, 4096)
    at = content.find(b"\xff\x4f\xff\x51")
    if at < 0 or len(content) < at + 43:
        return 8
    return (struct.unpack_from("B", content, at + 42)[0] & 0x7F) + 1


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """Apply EXIF's orientation to pixels `(H, W, ...)`."""
    steps = {2: "x", 3: "xy", 4: "y", 5: "t", 6: "tx", 7: "txy", 8: "ty"}.get(orientation, "")
    if "t" in steps:
        values = np.swapaxes(values, 0, 1)
    if "x" in steps:
        values = values[:, ::-1]
    return values[::-1] if "y" in steps else values


def turned_image(image: Image.Image, orientation: int) -> Image.Image:
    """Apply EXIF's orientation to an image."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def reason(error: BaseException) -> str:
    """Why a file cannot be read, in one line without its path, which the message that quotes this names."""
    return error.strerror if isinstance(error, OSError) and error.strerror else one_line(error)
