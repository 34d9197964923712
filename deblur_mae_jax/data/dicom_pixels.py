"""Read the frames of a DICOM file as gray levels or colours: windows, colour spaces, ultrasound regions."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np

from deblur_mae_jax.data import dicom_file
from deblur_mae_jax.data.dicom_file import Header
from deblur_mae_jax.data.raster import one_line
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError

# The decoder of each compression, by transfer syntax.
DECODERS = {
    "1.2.840.10008.1.2.4.50": "pillow", "1.2.840.10008.1.2.4.51": "pillow", "1.2.840.10008.1.2.5": "pydicom",
    "1.2.840.10008.1.2.4.80": "pyjpegls", "1.2.840.10008.1.2.4.81": "pyjpegls", "1.2.840.10008.1.2.4.90": "pylibjpeg",
    "1.2.840.10008.1.2.4.91": "pylibjpeg", "1.2.840.10008.1.2.4.201": "pylibjpeg",
    "1.2.840.10008.1.2.4.202": "pylibjpeg", "1.2.840.10008.1.2.4.203": "pylibjpeg",
}  # fmt: skip
LOSSLESS_JPEG = ("1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
JPEG_BASELINE = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51")
# Gray levels by which the channels of a gray picture may differ, and the share of pixels for which this must hold.
GRAY_DIFFERENCE, GRAY_SHARE = 8, 0.995
# Named windows of Hounsfield units: centre and width.
WINDOWS = {"lung": (-600, 1500), "soft": (40, 400), "bone": (400, 1800), "brain": (40, 80), "liver": (60, 150)}
YBR_NAMED_RGB = "the header says RGB, but the JPEG stream holds YCbCr; it is converted"
COLOUR = "colour pixels, such as Doppler, are read as their luma"
NO_WINDOW = "the file has no window, so its own range of values is mapped to gray levels; config.data.window sets one"
LOSSY = "lossily compressed"


@dataclasses.dataclass(frozen=True)
class FrameReader:
    """How frames become arrays.

    channels: 1 or 3.
    max_pixels: larger frames are refused before decoding.
    window: "" (the file's window, or all values), the name of one of `WINDOWS`, or "low,high".
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
            return self._eight_bits(header, values, pixels, notes), notes
        except (BadImage, UserError):
            raise
        except MemoryError as error:
            raise BadImage("not enough memory to decode it") from error
        except Exception as error:  # fields that contradict each other
            raise BadImage(
                f"damaged: its window or its tables cannot be understood ({type(error).__name__})"
            ) from error

    def _eight_bits(self, header: Header, values: Any, pixels: np.ndarray, notes: list[str]) -> np.ndarray:
        box = self.box(header)
        if box is not None:
            pixels = pixels[box[1] : box[3], box[0] : box[2]]
        if pixels.ndim == 2:
            return np.repeat(self._gray(pixels, values, notes)[..., None], self.channels, axis=2)
        return self._colour(pixels, notes)

    def box(self, header: Header) -> tuple[int, int, int, int] | None:
        """The part of the picture that is read (x0, y0, x1, y1), or `None` for all of it."""
        if self.crop == "none":
            return None
        if header.box is not None or self.crop == "regions":
            return header.box
        return fan_box(header) if header.modality == "US" else None

    def _gray(self, stored: np.ndarray, values: Any, notes: list[str]) -> np.ndarray:
        from pydicom.pixels import apply_modality_lut, apply_voi_lut

        modality = np.asarray(apply_modality_lut(stored, values), np.float64)
        named = self.window in WINDOWS and values.get("Modality") != "CT"
        window = None if named else window_of(self.window)
        if window is None and values.get("VOILUTSequence"):
            modality = np.asarray(apply_voi_lut(modality.astype(np.int64), values), np.float64)
            window = 0.0, float(2 ** int(values.VOILUTSequence[0].LUTDescriptor[2]) - 1)
        if window is None and "WindowCenter" in values:
            window = _own_window(values)
        if window is None:
            plain = stored.dtype == np.uint8 and int(values.get("BitsStored", 8)) == 8
            window = (0.0, 255.0) if plain else (float(modality.min()), float(modality.max()))
            if not plain:
                notes.append(NO_WINDOW)
        low, high = window
        scaled = np.clip((modality - low) / max(high - low, 1e-12), 0, 1) * 255.0
        eight = np.rint(scaled).astype(np.uint8)
        return 255 - eight if values.get("PhotometricInterpretation") == "MONOCHROME1" else eight

    def _colour(self, pixels: np.ndarray, notes: list[str]) -> np.ndarray:
        if pixels.dtype != np.uint8:  # palettes and some encoders have 16 bits
            pixels = (pixels >> 8).astype(np.uint8) if pixels.max() > 255 else pixels.astype(np.uint8)
        if self.channels == 3:
            return np.ascontiguousarray(pixels)
        wide = pixels.astype(np.int16)
        apart = wide.max(axis=2) - wide.min(axis=2)
        if (apart <= GRAY_DIFFERENCE).mean() >= GRAY_SHARE:
            return np.ascontiguousarray(np.rint(wide.mean(axis=2)).astype(np.uint8)[..., None])
        notes.append(COLOUR)
        luma = pixels @ np.array([0.299, 0.587, 0.114])
        return np.rint(luma).astype(np.uint8)[..., None]


def _own_window(values: Any) -> tuple[float, float]:
    """The range of the first window of a file (DICOM PS3.3 C.11.2)."""
    first = lambda name: float(np.atleast_1d(np.asarray(values[name].value, float))[0])
    centre, width = first("WindowCenter"), first("WindowWidth")
    if str(values.get("VOILUTFunction", "LINEAR")) == "LINEAR_EXACT":
        return centre - width / 2, centre + width / 2
    return centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2


def window_of(window: str) -> tuple[float, float] | None:
    """The range that `config.data.window` names, or `None` for "". Raises `UserError`."""
    if not window:
        return None
    if window in WINDOWS:
        centre, width = WINDOWS[window]
        return centre - width / 2, centre + width / 2
    low, _, high = window.partition(",")
    try:
        pair = float(low), float(high)
    except ValueError:
        pair = (0.0, 0.0)
    if not pair[0] < pair[1]:
        choices = ", ".join(WINDOWS)
        raise UserError(f"config.data.window='{window}' must be 'low,high' or one of {choices}")
    return pair


def stored(path: str, frame: int, values: Any) -> np.ndarray:
    """The stored values of a frame, with YCbCr converted to RGB.

    values: the header of the file.

    Each compression is read by one decoder, whatever else is installed: GDCM, which pydicom would prefer, ends the
    whole process on some damaged files.
    """
    from pydicom.pixels import pixel_array

    syntax = str(getattr(getattr(values, "file_meta", None), "TransferSyntaxUID", ""))
    if syntax not in LOSSLESS_JPEG:
        return np.asarray(pixel_array(path, index=frame, decoding_plugin=DECODERS.get(syntax, "")))
    import imagecodecs
    from pydicom.encaps import get_frame

    whole = dicom_file.pydicom().dcmread(path, force=True)
    stream = get_frame(whole.PixelData, frame, number_of_frames=int(values.get("NumberOfFrames", 1) or 1))
    pixels = np.asarray(imagecodecs.jpegsof3_decode(stream))
    if pixels.shape[:2] != (values.Rows, values.Columns):
        raise BadImage(f"damaged: its frame has the shape {pixels.shape}")
    if values.get("PixelRepresentation", 0) == 1:
        pixels = pixels.view(np.int16 if pixels.dtype.itemsize == 2 else np.int8)
    return pixels


def decoded(header: Header, frame: int, notes: list[str]) -> tuple[Any, np.ndarray]:
    """The header and the stored values `(H, W)` of a frame, or its RGB colours `(H, W, 3)`. Raises `BadImage`."""
    dicom_file.pydicom()
    from pydicom.pixels import apply_color_lut

    values = dicom_file.dataset(header.path)
    try:
        pixels = stored(header.path, frame, values)
        photometric = str(values.get("PhotometricInterpretation", ""))
        if photometric == "PALETTE COLOR":
            pixels = np.asarray(apply_color_lut(pixels, values))
        elif photometric == "RGB" and pixels.ndim == 3:
            pixels = _as_stream_says(header, values, frame, pixels, notes)
    except (BadImage, UserError):
        raise
    except MemoryError as error:
        raise BadImage("not enough memory to decode it") from error
    except Exception as error:  # decoders raise many kinds on damaged data
        text = one_line(error)
        missing = "decode" in text and ("plugin" in text or "missing" in text)
        raise BadImage(
            f"its compression ({header.syntax}) needs another decoder: {dicom_file.EXTRA}" if missing else
            f"damaged: its pixels cannot be decoded ({type(error).__name__})"
        ) from error  # fmt: skip
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise BadImage(f"its frames have the shape {pixels.shape}; expected gray or RGB")
    if str(values.get("LossyImageCompression", "")) == "01":
        notes.append(LOSSY)
    return values, pixels


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
    try:
        stack = [decoded(header, frame, [])[1].astype(np.float32) for frame in frames]
    except BadImage:
        return None
    gray = np.stack([f.mean(axis=2) if f.ndim == 3 else f for f in stack])
    inside = gray.std(axis=0) > 2 if len(gray) > 1 else gray[0] > max(8.0, 0.03 * float(gray[0].max()))
    closed = ndimage.binary_fill_holes(ndimage.binary_closing(inside, iterations=1))
    closed = ndimage.binary_opening(closed, iterations=2)
    parts, count = ndimage.label(closed)
    if not count:
        return None
    largest = 1 + int(np.argmax(ndimage.sum_labels(closed, parts, range(1, count + 1))))
    rows, columns = ndimage.find_objects((parts == largest).astype(int))[0]
    share = (rows.stop - rows.start) * (columns.stop - columns.start) / closed.size
    return (columns.start, rows.start, columns.stop, rows.stop) if 0.1 <= share <= 0.98 else None
