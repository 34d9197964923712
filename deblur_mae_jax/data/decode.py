"""Decode image files to uint8 arrays.

Formats are PNG, JPEG, BMP, TIFF and others, with 8 or 16 bits, in gray, RGB, palette or CMYK.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

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
_EXIF_ORIENTATION = 0x0112


@dataclasses.dataclass(frozen=True)
class Decoder:
    """How files become arrays.

    channels:   1 (gray, with ITU-R 601 weights) or 3.
    max_pixels: largest number of pixels; larger files are refused from their header, before decoding.
    max_side:   longest side, pixels; larger images are shrunk to it with antialiasing. 0: never.
    min_side:   shortest side, pixels; smaller images are refused.
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
        with self._open(path) as image:
            width, height = image.size
            if image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8):
                width, height = height, width
        return self._shrunk(height, width)

    def __call__(self, path: Path | bytes) -> np.ndarray:
        """uint8 `(H, W, channels)`. Raises `BadImage`."""
        with self._open(path) as image:
            try:
                image.load()
                image = ImageOps.exif_transpose(image)
                height, width = self._shrunk(image.height, image.width)
                image = self._to_8_bit(image)
                image = image.convert("L" if self.channels == 1 else "RGB")
            except BadImage:
                raise
            except MemoryError as error:
                raise BadImage("not enough memory to decode it") from error
            except Exception as error:  # Pillow's decoders raise many kinds on damaged data
                raise BadImage(f"damaged: {_one_line(error)}") from error
        if (height, width) != (image.height, image.width):
            image = image.resize((width, height), Image.Resampling.LANCZOS)
        array = np.asarray(image)
        return array[:, :, None] if array.ndim == 2 else array

    def mask(self, path: Path, image_path: Path) -> np.ndarray:
        """The values of a mask file on the pixel grid of the decoded image, uint8 `(H, W)`.

        For a palette image, the values are the palette indices.
        """
        with self._open(path) as mask, self._open(image_path) as image:
            turn = image.getexif().get(_EXIF_ORIENTATION, 1)
            if mask.size != image.size:
                raise BadImage(
                    f"its mask is {mask.width} x {mask.height} pixels, the image {image.width} x {image.height}"
                )
            try:
                mask.load()
                mask.getexif()[_EXIF_ORIENTATION] = turn
                mask = ImageOps.exif_transpose(mask)
            except Exception as error:  # Pillow's decoders raise many kinds on damaged data
                raise BadImage(f"its mask is damaged: {_one_line(error)}") from error
        values = np.asarray(mask if mask.mode in ("L", "P", "1") else mask.convert("L"))
        height, width = self._shrunk(*values.shape)
        out = Image.fromarray(values.astype(np.uint8) * (255 if mask.mode == "1" else 1))
        return np.asarray(out.resize((width, height), Image.Resampling.NEAREST))

    def _open(self, path: Path | bytes) -> Image.Image:
        try:
            if isinstance(path, bytes):
                if not path:
                    raise BadImage("empty")
                image = Image.open(io.BytesIO(path))
            else:
                if path.stat().st_size == 0:
                    raise BadImage("empty file (0 bytes)")
                image = Image.open(path)
        except UnidentifiedImageError as error:
            raise BadImage("not an image, or damaged beyond recognition") from error
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise BadImage(f"larger than data.max_pixels={self.max_pixels}") from error
        except BadImage:
            raise
        except Exception as error:  # a header can be damaged in as many ways as the pixels
            raise BadImage(f"cannot be opened: {_one_line(error)}") from error
        width, height = image.size
        if width * height > self.max_pixels:
            image.close()
            raise BadImage(f"{width} x {height} pixels, over data.max_pixels={self.max_pixels}")
        if min(width, height) < self.min_side:
            image.close()
            raise BadImage(f"{width} x {height} pixels, under data.min_side={self.min_side}")
        return image

    def _shrunk(self, height: int, width: int) -> tuple[int, int]:
        longest = max(height, width)
        if not self.max_side or longest <= self.max_side:
            return height, width
        scale = self.max_side / longest
        return max(1, round(height * scale)), max(1, round(width * scale))

    def _to_8_bit(self, image: Image.Image) -> Image.Image:
        if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
            return image
        values = np.asarray(image).astype(np.float64)
        if not np.isfinite(values).all():
            raise BadImage("holds NaN or infinite values")
        low, high = 0.0, 65535.0
        if self.bits16 == "minmax" and values.max() > values.min():
            low, high = float(values.min()), float(values.max())
        scaled = np.clip((values - low) / (high - low), 0.0, 1.0) * 255.0
        return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _one_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
