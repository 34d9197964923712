"""Decode image files to uint8 arrays.

Formats are PNG, JPEG, BMP, TIFF and others, with 8 to 64 bits, in gray, RGB, palette, CMYK or L*a*b*.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deblur_mae_jax.data import deep_images, raster
from deblur_mae_jax.data.raster import Header
from deblur_mae_jax.data.source import BadImage

EXTENSIONS = frozenset(
    [
        ".png",
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".gif",
        ".webp",
        ".pgm",
        ".ppm",
        ".pnm",
        ".jp2",
    ]
)
BITS16 = ("minmax", "full")
# What is said of an image that was read with an assumption.
TRANSPARENT = "transparent pixels are read as black"
ALL_TRANSPARENT = "every pixel is transparent; the colours stored under them are read"
OUTLIERS = "a few outlying values; the range of the other 99.8 % of the pixels is stretched to 8 bits"
UNIT_RANGE = "values are from 0 to 1, so this is the range that data.bits16=full maps to 8 bits"
DARK = "nearly black: all values are below 4096, of which data.bits16=full makes at most 16 gray levels"
FEW_BITS = 4096
CLIPPED = "values outside 0 to 65535 are clipped by data.bits16=full"
# Gray levels by which the channels of a gray picture may differ, and the share of pixels for which this must hold.
GRAY_DIFFERENCE, GRAY_SHARE = 8, 0.995
COLOUR = "colour, such as Doppler, is read as its luma: {} % of the pixels have colour"
COLOUR_SHARES = {5: "up to 5", 20: "5 to 20", 100: "20 to 100"}
COLOURED = ("RGB", "P", "PA", "CMYK", "YCbCr")
NO_ORIENTATION = "its orientation (EXIF) is damaged; it is read as stored"
ONE_FRAME = "several frames or pages, of which only the first is read"


@dataclasses.dataclass(frozen=True)
class Decoder:
    """How files become arrays.

    channels:   1 (gray, with ITU-R 601 weights) or 3.
    max_pixels: largest number of pixels; larger files are refused from their header, before decoding.
    max_side:   longest side, pixels; larger images are shrunk to it with antialiasing. 0: never.
    min_side:   shortest side, pixels, before and after shrinking; smaller images are refused.
    bits16:     conversion of 16-bit and float images to 8 bits: "minmax" stretches each image's own range,
                "full" maps 0..65535.
    """

    channels: int = 1
    max_pixels: int = 50_000_000
    max_side: int = 1024
    min_side: int = 16
    bits16: str = "minmax"

    def header(self, path: Path | bytes) -> tuple[int, int]:
        """(H, W) of the decoded array, from the header alone."""
        with raster.opened(path, self.max_pixels) as (header, _):
            return self._shrunk(*self._checked(header).upright)

    def __call__(self, path: Path | bytes) -> np.ndarray:
        """uint8 `(H, W, channels)`. Raises `BadImage`."""
        return self.decode(path)[0]

    def decode(self, path: Path | bytes) -> tuple[np.ndarray, list[str]]:
        """uint8 `(H, W, channels)`, and the assumptions that were made. Raises `BadImage`."""
        notes: list[str] = []
        with raster.opened(path, self.max_pixels) as (header, opened):
            self._checked(header)
            if header.frames > 1:
                notes.append(ONE_FRAME)
            if header.turn_unknown:
                notes.append(NO_ORIENTATION)
            try:
                plain = opened is not None and not header.deep
                image = self._plain(opened, header, notes) if plain else self._deep(path, header, notes)
                image = self._in_channels(image, notes)
                raster.require_end(path)
            except (BadImage, FileNotFoundError):
                raise
            except MemoryError as error:
                raise BadImage("not enough memory to decode it") from error
            except Exception as error:  # Pillow's decoders raise many kinds on damaged data
                raise BadImage(f"damaged: {raster.reason(error)}") from error
        return self._array(image), notes

    def prepare(self, values: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """What `decode` makes of a file with these values: `(H, W)` or `(H, W, 1 to 4)`, of 8 bits or more.

        The last of 2 or 4 channels is the opacity. Raises `BadImage`.
        """
        notes: list[str] = []
        values = values[:, :, 0] if values.ndim == 3 and values.shape[2] == 1 else values
        modes = {2: "LA", 3: "RGB", 4: "RGBA"}
        if values.ndim not in (2, 3) or 0 in values.shape or (values.ndim == 3 and values.shape[2] not in modes):
            raise BadImage(f"an array of shape {values.shape} is no image")
        self._check_size(values.shape[1], values.shape[0])
        opaque = values.ndim == 2 or values.shape[2] == 3
        if values.dtype == bool:
            values = values.astype(np.uint8) * 255
        if values.dtype != np.uint8:
            if not opaque:
                raise BadImage(f"its values are of type {values.dtype}, with an opacity")
            values = self._to_8_bit(values, notes)
        image = Image.fromarray(np.ascontiguousarray(values), None if values.ndim == 2 else modes[values.shape[2]])
        return self._array(self._in_channels(on_black(image, notes), notes)), notes

    def _in_channels(self, image: Image.Image, notes: list[str]) -> Image.Image:
        if self.channels == 1 and image.mode in COLOURED:  # every fourth pixel is enough
            sample = image.resize((max(1, image.width // 4), max(1, image.height // 4)), Image.Resampling.NEAREST)
            notes += colour_notes(np.asarray(sample.convert("RGB")))
        return image.convert("L" if self.channels == 1 else "RGB")

    def _array(self, image: Image.Image) -> np.ndarray:
        height, width = self._shrunk(image.height, image.width)
        if (height, width) != (image.height, image.width):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        array = np.asarray(image)
        return array[:, :, None] if array.ndim == 2 else array

    def shrunk_mask(self, mask: np.ndarray) -> np.ndarray:
        """A mask `(H, W)` uint8 on the grid of the decoded image."""
        height, width = self._shrunk(*mask.shape)
        return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))

    def _checked(self, header: Header) -> Header:
        """Refuse sizes that are out of range. Raises `BadImage`."""
        self._check_size(header.width, header.height)
        return header

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise BadImage(f"{width} x {height} pixels, over data.max_pixels={self.max_pixels}")
        if min(width, height) < self.min_side:
            raise BadImage(f"{width} x {height} pixels, under data.min_side={self.min_side}")
        after = self._shrunk(height, width)
        if min(after) < self.min_side:
            raise BadImage(
                f"{width} x {height} pixels become {after[1]} x {after[0]} by data.max_side={self.max_side}, under "
                f"data.min_side={self.min_side}"
            )

    def _plain(self, image: Any, header: Header, notes: list[str]) -> Image.Image:
        """The pixels that Pillow reads, with 8 bits."""
        image.load()
        turned = image if header.applied else raster.turned_image(image, header.orientation)
        if turned.mode in ("I", "F") or turned.mode.startswith("I;16"):
            return Image.fromarray(self._to_8_bit(np.asarray(turned), notes))
        return on_black(turned, notes)

    def _deep(self, path: Path | bytes, header: Header, notes: list[str]) -> Image.Image:
        """Read an image that Pillow would read wrongly."""
        pixels = deep_images.read(path, header, self.max_pixels)
        values, alpha = pixels.values, pixels.alpha
        notes += pixels.notes
        if values.dtype == bool:
            values = values.astype(np.uint8) * 255
        if alpha is not None and alpha.min() < 1:
            notes.append(TRANSPARENT if alpha.max() > 0 else ALL_TRANSPARENT)
            if alpha.max() > 0 and not pixels.multiplied:
                values = values * (alpha if values.ndim == 2 else alpha[..., None])
                values = np.rint(values).astype(np.uint8) if pixels.values.dtype == np.uint8 else values
        eight = values if values.dtype == np.uint8 else self._to_8_bit(values, notes)
        return Image.fromarray(np.ascontiguousarray(eight))

    def _shrunk(self, height: int, width: int) -> tuple[int, int]:
        longest = max(height, width)
        if not self.max_side or longest <= self.max_side:
            return height, width
        scale = self.max_side / longest
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _to_8_bit(self, values: np.ndarray, notes: list[str]) -> np.ndarray:
        if values.dtype.kind not in "iuf":
            raise BadImage(f"its values are of type {values.dtype}")
        values = values.astype(np.float64)
        if not np.isfinite(values).all():
            raise BadImage("holds NaN or infinite values")
        low, high = 0.0, 65535.0
        if self.bits16 == "full":
            if values.min() >= 0 and 0 < values.max() <= 1:
                high = 1.0
                notes.append(UNIT_RANGE)
            elif values.min() < low or values.max() > high:
                notes.append(CLIPPED)
            elif values.max() < FEW_BITS:
                notes.append(DARK)
        if self.bits16 == "minmax" and values.max() > values.min():
            low, high = range_of(values, notes)
        scaled = np.clip((values - low) / (high - low), 0.0, 1.0) * 255.0
        return np.rint(scaled).astype(np.uint8)


def colour_share(pixels: np.ndarray) -> float:
    """The share of the pixels of `(H, W, 3)` whose channels differ by more than `GRAY_DIFFERENCE`."""
    wide = pixels.astype(np.int16)
    return float((wide.max(axis=2) - wide.min(axis=2) > GRAY_DIFFERENCE).mean())


def colour_notes(pixels: np.ndarray) -> list[str]:
    """A note on a picture `(H, W, 3)` that has colours; [] for a gray one."""
    share = colour_share(pixels)
    if share <= 1 - GRAY_SHARE:
        return []
    return [COLOUR.format(next(text for limit, text in COLOUR_SHARES.items() if 100 * share <= limit))]


def range_of(values: np.ndarray, notes: list[str]) -> tuple[float, float]:
    """The range of values that becomes 0..255: all of it, or that of 99.8 % of the pixels if the others lie far off."""
    low, high = float(values.min()), float(values.max())
    inner = np.percentile(values, [0.1, 99.9])
    if 0 < inner[1] - inner[0] < (high - low) / 16:
        notes.append(OUTLIERS)
        return float(inner[0]), float(inner[1])
    return low, high


def on_black(image: Image.Image, notes: list[str]) -> Image.Image:
    """Show transparent pixels as black, as a viewer of ultrasound does."""
    if image.mode not in ("RGBA", "LA", "PA", "La", "RGBa") and "transparency" not in image.info:
        return image
    full = image.convert("RGBA")
    low, high = full.getchannel("A").getextrema()
    if low == 255:
        return image
    if high == 0:
        notes.append(ALL_TRANSPARENT)
        return full.convert("RGB")
    notes.append(TRANSPARENT)
    return Image.alpha_composite(Image.new("RGBA", full.size, (0, 0, 0, 255)), full).convert("RGB")
