"""Read the frames of a DICOM file: compressions, colour spaces, ultrasound regions."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from typing import Any

import numpy as np

from deblur_mae_jax.data import dicom_file, dicom_windows, raster
from deblur_mae_jax.data.decode import colour_notes, colour_share
from deblur_mae_jax.data.dicom_file import Header
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError

# The decoder of each compression, by transfer syntax.
DECODERS = {
    "1.2.840.10008.1.2.4.50": "pillow", "1.2.840.10008.1.2.4.51": "pillow", "1.2.840.10008.1.2.5": "pydicom",
    "1.2.840.10008.1.2.4.80": "pyjpegls", "1.2.840.10008.1.2.4.81": "pyjpegls", "1.2.840.10008.1.2.4.90": "pylibjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg", "1.2.840.10008.1.2.4.201": "pylibjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg", "1.2.840.10008.1.2.4.203": "pylibjpeg",
}  # fmt: skip
JPEG_2000 = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
LOSSLESS_JPEG = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_BASELINE = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
YBR_NAMED_RGB = "the header says RGB, but the JPEG stream holds YCbCr; it is converted"
WHOLE = "no region is stated and no fan is found, so the whole picture is read, with any text beside the image"
LOSSY = "lossily compressed"
NOT_SQUARE = "its pixels are not square (PixelSpacing, PixelAspectRatio), and are read as if they were"
# Photometric interpretations that are read, and their samples per pixel.
PHOTOMETRIC = {
    "MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3, "YBR_FULL": 3, "YBR_FULL_422": 3, "YBR_ICT": 3,
    "YBR_RCT": 3,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class FrameReader:
    """How frames become arrays.

    channels: 1 or 3.
    max_pixels: larger frames are refused before decoding.
    window: "" (the file's window, or all values), the name of one of `dicom_windows.WINDOWS`, or "low,high".
    crop: "auto" (ultrasound regions, else the fan), "regions", or "none".
    """

    channels: int = 1
    max_pixels: int = 50_000_000
    window: str = ""
    crop: str = "auto"

    def read(self, header: Header, frame: int) -> tuple[np.ndarray, list[str]]:
        """One frame as uint8 `(H, W, channels)`, and the assumptions that were made. Raises `BadImage`."""
        if header.rows * header.columns > self.max_pixels:
            raise BadImage(f"{header.columns} x {header.rows} pixels, over data.max_pixels={self.max_pixels}")
        notes: list[str] = []
        values, pixels = decoded(header, frame, notes)
        try:
            return self._eight_bits(header, frame, values, pixels, notes), notes
        except (BadImage, UserError):
            raise
        except MemoryError as error:
            raise BadImage("not enough memory to decode it") from error
        except Exception as error:  # fields that contradict each other
            raise BadImage(
                f"damaged: its window or its tables cannot be understood ({type(error).__name__})"
            ) from error

    def _eight_bits(self, header: Header, frame: int, values: Any, pixels: np.ndarray, notes: list[str]) -> np.ndarray:
        box = self.box(header)
        if box is not None:
            pixels = pixels[box[1] : box[3], box[0] : box[2]]
        elif self.crop == "auto" and header.modality == "US":
            notes.append(WHOLE)
        if pixels.ndim == 2:
            gray = dicom_windows.eight_bits(pixels, values, frame, self.window, notes)
            return np.repeat(gray[..., None], self.channels, axis=2)
        return self._colour(_highest_bits(pixels, values), notes)

    def box(self, header: Header) -> tuple[int, int, int, int] | None:
        """The part of the picture that is read (x0, y0, x1, y1), or `None` for all of it."""
        if self.crop == "none":
            return None
        if header.box is not None or self.crop == "regions":
            return header.box
        return fan_box(header) if header.modality == "US" else None

    def color_frac(self, header: Header, frame: int) -> float:
        """The share of the pixels that have colour; 0 for gray files. Raises `BadImage`."""
        if header.photometric.startswith("MONOCHROME"):
            return 0.0
        values, pixels = decoded(header, frame, [])
        box = self.box(header) or (0, 0, header.columns, header.rows)
        return colour_share(_highest_bits(pixels, values)[box[1] : box[3], box[0] : box[2]])

    def _colour(self, pixels: np.ndarray, notes: list[str]) -> np.ndarray:
        if self.channels == 3:
            return np.ascontiguousarray(pixels)
        said = colour_notes(pixels)
        if not said:
            return np.ascontiguousarray(np.rint(pixels.mean(axis=2)).astype(np.uint8)[..., None])
        notes += said
        luma = pixels @ np.array([0.299, 0.587, 0.114])
        return np.rint(luma).astype(np.uint8)[..., None]


def _highest_bits(pixels: np.ndarray, values: Any) -> np.ndarray:
    """The highest 8 bits of colours."""
    if pixels.dtype == np.uint8:
        return pixels
    return (pixels >> max(0, int(values.get("BitsStored", 0) or 8) - 8)).astype(np.uint8)


def stored(path: str, frame: int, values: Any) -> np.ndarray:
    """The stored values of a frame, with YCbCr converted to RGB, without the bits above BitsStored.

    values: the header of the file.

    Each compression is read by one decoder, whatever else is installed: GDCM, which pydicom would prefer, ends the
    whole process on some damaged files.
    """
    from pydicom.pixels import pixel_array

    syntax = str(getattr(getattr(values, "file_meta", None), "TransferSyntaxUID", ""))
    if syntax in LOSSLESS_JPEG:
        pixels = _by_imagecodecs("jpegsof3_decode", path, frame, values)
    elif syntax == JPEG_EXTENDED and int(values.get("BitsAllocated", 8) or 8) > 8:
        raster.require_end_of_jpeg(_stream(path, frame))
        pixels = _by_imagecodecs("jpeg_decode", path, frame, values)
    else:
        if syntax in JPEG_BASELINE:
            raster.require_end_of_jpeg(_stream(path, frame))
        # pydicom converts by the header. A decoder that has converted by the stream must not be followed by it.
        raw = int(values.get("SamplesPerPixel", 1) or 1) == 3 and decoded_as_rgb(
            path, syntax, os.stat(path).st_mtime_ns
        )
        pixels = np.asarray(pixel_array(path, index=frame, raw=raw, decoding_plugin=DECODERS.get(syntax, "")))
    return _own_bits(pixels, values) if pixels.ndim == 2 else pixels


@functools.lru_cache(maxsize=4096)
def decoded_as_rgb(path: str, syntax: str, changed: int) -> bool:
    """Whether the decoder converts YCbCr to RGB itself, because the first stream of a file says so.

    A JPEG stream does by Adobe's marker with transform 1, and a JPEG 2000 stream by its colour transform.

    changed: time of the last change of the file.
    """
    if syntax not in JPEG_BASELINE and syntax not in JPEG_2000:
        return False
    from pydicom.encaps import get_frame

    values = dicom_file.pydicom().dcmread(path, force=True)
    frames = int(values.get("NumberOfFrames", 1) or 1)
    stream = get_frame(values.PixelData, 0, number_of_frames=frames)
    if syntax in JPEG_2000:
        coding = stream.find(b"\xff\x52")  # length 2, style 1, order 1, layers 2, then the transform
        wide = str(values.get("PhotometricInterpretation", "")).startswith("YBR_FULL")
        return wide and coding >= 0 and stream[coding + 8 : coding + 9] == b"\x01"
    adobe = stream.find(b"Adobe", 0, 4096)  # version 2, flags 4, then the transform
    return adobe >= 0 and stream[adobe + 11 : adobe + 12] == b"\x01"


def _stream(path: str, frame: int) -> bytes:
    """The compressed stream of a frame."""
    from pydicom.encaps import get_frame

    whole = dicom_file.pydicom().dcmread(path, force=True)
    return get_frame(whole.PixelData, frame, number_of_frames=int(whole.get("NumberOfFrames", 1) or 1))


def _by_imagecodecs(decoder: str, path: str, frame: int, values: Any) -> np.ndarray:
    """A frame by a decoder of imagecodecs: lossless JPEG, and JPEG of 12 bits."""
    import imagecodecs
    from pydicom.pixels import convert_color_space

    pixels = np.asarray(getattr(imagecodecs, decoder)(_stream(path, frame)))
    if pixels.shape[:2] != (values.Rows, values.Columns):
        raise BadImage(f"damaged: its frame has the shape {pixels.shape}")
    if values.get("PixelRepresentation", 0) == 1:
        pixels = pixels.view(np.int16 if pixels.dtype.itemsize == 2 else np.int8)
    if pixels.ndim == 3 and str(values.get("PhotometricInterpretation", "")) == "YBR_FULL":
        pixels = np.asarray(convert_color_space(pixels, "YBR_FULL", "RGB"))
    return pixels


def _own_bits(pixels: np.ndarray, values: Any) -> np.ndarray:
    """Gray values without the bits above BitsStored, which may hold overlays; negative values keep their sign.

    pydicom does this for uncompressed files, and decoders of compressed ones do not.
    """
    bits, width = int(values.get("BitsStored", 0) or 0), 8 * pixels.dtype.itemsize
    if pixels.dtype.kind not in "iu" or not 0 < bits < width:
        return pixels
    if int(values.get("HighBit", bits - 1)) != bits - 1:
        raise BadImage(f"HighBit is {values.HighBit} where BitsStored is {bits}; it must be one less")
    # Shifted to the top and back: the shift to the right repeats the sign of signed types.
    return (pixels << (width - bits)) >> (width - bits)


def decoded(header: Header, frame: int, notes: list[str]) -> tuple[Any, np.ndarray]:
    """The header and the stored values `(H, W)` of a frame, or its RGB colours `(H, W, 3)`. Raises `BadImage`."""
    dicom_file.pydicom()
    values = dicom_file.dataset(header.path)
    try:
        photometric = str(values.get("PhotometricInterpretation", ""))
        if photometric and (why := _contradiction(values)):
            raise BadImage(why)
        pixels = stored(header.path, frame, values)
        if photometric == "PALETTE COLOR":
            pixels = _by_palette(pixels, values)
        elif photometric == "RGB" and pixels.ndim == 3:
            pixels = _as_stream_says(header, values, frame, pixels, notes)
        lossy = str(values.get("LossyImageCompression", "")) == "01"
    except (BadImage, UserError):
        raise
    except Exception as error:  # decoders raise many kinds on damaged data
        raise not_decoded(error, values) from error
    stretched = len(header.spacing) == 2 and not np.isclose(*header.spacing, rtol=0.02)
    if stretched or (not header.spacing and not _is_square(values)):
        notes.append(NOT_SQUARE)
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise BadImage(f"its frames have the shape {pixels.shape}; expected gray or RGB")
    if lossy:
        notes.append(LOSSY)
    return values, pixels


def not_decoded(error: Exception, values: Any) -> BadImage:
    """What to say of a frame whose pixels cannot be decoded.

    values: the header of its file.
    """
    if isinstance(error, MemoryError):
        return BadImage("not enough memory to decode it")
    text = raster.reason(error)
    syntax = dicom_file.syntax_of(values)
    if isinstance(error, NotImplementedError):
        return BadImage(f"its compression ({syntax}) cannot be read")
    if "missing dependencies" in text or "is missing" in text:
        return BadImage(f"its compression ({syntax}) needs another decoder: {dicom_file.EXTRA}")
    return BadImage(_reason(values) or f"damaged: its pixels cannot be decoded ({type(error).__name__})")


def _is_square(values: Any) -> bool:
    """Whether PixelAspectRatio, if there is one that can be understood, states square pixels."""
    try:
        aspect = [float(number) for number in np.atleast_1d(values.get("PixelAspectRatio", None) or [])]
    except Exception:  # pydicom converts a field when it is asked for
        return True
    return len(aspect) != 2 or bool(np.isclose(aspect[0], aspect[1]))


def _reason(values: Any) -> str:
    try:
        return _why(values)
    except Exception:  # pydicom converts a field when it is asked for, and damaged ones cannot be converted
        return ""


def _why(values: Any) -> str:
    """The field of a header for which its pixels cannot be decoded; "" if all are as they should be."""
    needed = ("BitsAllocated", "BitsStored", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation")
    lacking = [name for name in needed if values.get(name) is None]
    if lacking:
        return f"its header lacks {', '.join(lacking)}"
    return _contradiction(values)


def _contradiction(values: Any) -> str:
    """Whether the colours that a header states are unknown, or have another number of channels; "" if not."""
    photometric = str(values.PhotometricInterpretation)
    if photometric not in PHOTOMETRIC:
        return f"PhotometricInterpretation '{photometric}' is none of {', '.join(PHOTOMETRIC)}"
    wanted = PHOTOMETRIC[photometric]
    samples = int(values.get("SamplesPerPixel", wanted) or wanted)
    if samples != wanted:
        return f"SamplesPerPixel is {samples}, but PhotometricInterpretation '{photometric}' has {wanted}"
    return ""


def _words(content: Any, order: str) -> np.ndarray:
    """16-bit numbers, which pydicom gives as bytes or as a list.

    order: of the bytes, "<" or ">".
    """
    if not isinstance(content, bytes):
        return np.asarray(content)
    return np.frombuffer(content[: len(content) // 2 * 2], f"{order}u2")


def _by_palette(pixels: np.ndarray, values: Any) -> np.ndarray:
    """The 8-bit colours `(H, W, 3)` of palette numbers."""
    from pydicom.pixels import apply_color_lut

    colours = ("Red", "Green", "Blue")
    described = [values.get(f"{colour}PaletteColorLookupTableDescriptor") for colour in colours]
    discrete = all(f"{colour}PaletteColorLookupTableData" in values for colour in colours)
    swapped = dicom_windows.byte_order(values) == ">"
    large = all(d and int(d[2]) == 8 and not 0 < int(d[0]) <= 256 for d in described)
    if discrete and all(described) and (swapped or large):
        # pydicom counts the numbers of a palette of 8 bits with 8 bits, and takes every file for little-endian.
        tables = [dicom_windows.table(values, f"{c}PaletteColorLookupTable{{}}") for c in colours]
        shown = np.stack([dicom_windows.looked_up(pixels, *t[:2]) for t in tables], axis=-1)
        return (shown >> 8 if max(int(t[0].max()) for t in tables) > 255 else shown).astype(np.uint8)
    return _palette_bits(np.asarray(apply_color_lut(pixels, values)), values)


def _palette_bits(pixels: np.ndarray, values: Any) -> np.ndarray:
    """8-bit colours of a palette. Palettes of 16 bits whose entries are all below 256 hold 8 bits."""
    if pixels.dtype == np.uint8:
        return pixels
    names = [f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]
    tables = [_words(values[name].value, dicom_windows.byte_order(values)) for name in names if name in values]
    small = len(tables) == 3 and all((table < 256).all() for table in tables)
    return (pixels if small else pixels >> 8).astype(np.uint8)


def _as_stream_says(header: Header, values: Any, frame: int, pixels: np.ndarray, notes: list[str]) -> np.ndarray:
    """The colours of a JPEG that is said to hold RGB, and may hold YCbCr.

    Many devices wrote such files before DICOM's correction proposal 156. pydicom converts those with a JFIF marker;
    others without any marker are known by the numbers of their components and by chroma that hardly varies.
    """
    syntax = str(getattr(getattr(values, "file_meta", None), "TransferSyntaxUID", ""))
    if syntax not in JPEG_BASELINE or pixels.dtype != np.uint8:
        return pixels
    from pydicom.encaps import get_frame
    from pydicom.pixels import convert_color_space

    whole = dicom_file.pydicom().dcmread(header.path, force=True)
    stream = get_frame(whole.PixelData, frame, number_of_frames=header.frames)
    if stream.find(b"JFIF\0", 0, 64) >= 0:
        notes.append(YBR_NAMED_RGB)
        return pixels
    brightness, chroma = pixels[..., 0].astype(np.float32), pixels[..., 1:].astype(np.float32)
    near = (np.abs(chroma - 128) <= 48).mean() > 0.95 and chroma.std() < 0.5 * brightness.std()
    if stream.find(b"Adobe\0", 0, 4096) >= 0 or not near or _component_numbers(stream) == [82, 71, 66]:
        return pixels
    notes.append(YBR_NAMED_RGB)
    return np.asarray(convert_color_space(pixels, "YBR_FULL", "RGB"))


def _component_numbers(stream: bytes) -> list[int]:
    """The numbers of the components of a JPEG stream; [] if its frame header is not found."""
    for marker in (b"\xff\xc0", b"\xff\xc1", b"\xff\xc2"):
        start = stream.find(marker)
        if start >= 0 and len(stream) > start + 19:
            return [stream[start + 10 + 3 * i] for i in range(3)]
    return []


@functools.lru_cache(maxsize=256)
def fan_box(header: Header) -> tuple[int, int, int, int] | None:
    """The box around the moving part of a clip, or around the largest bright part of a picture; `None` if unclear."""
    from scipy import ndimage

    frames = sorted({int(i) for i in np.linspace(0, header.frames - 1, min(5, header.frames))})
    stack = []
    for frame in frames:
        with contextlib.suppress(BadImage):  # the last frames of a clip that was cut off
            stack.append(decoded(header, frame, [])[1].astype(np.float32))
    if not stack:
        return None
    gray = np.stack([f.mean(axis=2) if f.ndim == 3 else f for f in stack])
    inside = gray.std(axis=0) > 2
    if not inside.any():  # one picture, or a clip of a still one
        inside = gray[0] > max(8.0, 0.03 * float(gray[0].max()))
    closed = ndimage.binary_fill_holes(ndimage.binary_closing(inside, iterations=1))
    closed = ndimage.binary_opening(closed, iterations=2)
    parts, count = ndimage.label(closed)
    if not count:
        return None
    largest = 1 + int(np.argmax(ndimage.sum_labels(closed, parts, range(1, count + 1))))
    rows, columns = ndimage.find_objects((parts == largest).astype(int))[0]
    share = (rows.stop - rows.start) * (columns.stop - columns.start) / closed.size
    return (columns.start, rows.start, columns.stop, rows.stop) if 0.1 <= share <= 0.98 else None
