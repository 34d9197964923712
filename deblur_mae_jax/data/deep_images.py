"""Read the pixels of image files that Pillow would read wrongly or not at all.

These are TIFFs with more than 8 bits, signed numbers or unusual colours, and colour images with more than 8 bits per
channel, of which Pillow keeps the high byte only.
"""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from deblur_mae_jax.data import raster
from deblur_mae_jax.data.raster import Header
from deblur_mae_jax.data.source import BadImage

# Photometric interpretations of TIFF.
WHITE_IS_SMALL, PALETTE, CMYK, LAB = 0, 3, 5, 8
READ = (WHITE_IS_SMALL, 1, 2, PALETTE, CMYK, LAB)
NAMES = {6: "YCbCr", 9: "ICC L*a*b*", 10: "ITU L*a*b*", 32803: "a colour filter array", 4: "a transparency mask"}
# Kinds of an extra channel of TIFF.
_PREMULTIPLIED, _OPACITY = 1, 2
FURTHER_CHANNEL = "a further channel, which is neither colour nor opacity, is not read"


class Pixels(NamedTuple):
    """The pixels of an image, upright.

    values: `(H, W)` or `(H, W, 3)` in the type of the file; large is white.
    alpha: the opacity `(H, W)` in 0..1, or `None`.
    multiplied: whether the values are multiplied by the opacity already.
    notes: assumptions that were made.
    """

    values: np.ndarray
    alpha: np.ndarray | None = None
    multiplied: bool = False
    notes: tuple[str, ...] = ()


def read(path: Path | bytes, header: Header, max_pixels: int) -> Pixels:
    """Read an image for which `Header.deep` is true. Raises `BadImage`."""
    start = raster.first_bytes(path, 12)
    try:
        if start[:4] in raster.TIFF_STARTS:
            pixels = _tiff(path, max_pixels)
        elif start[:2] in (b"P3", b"P6"):
            pixels = Pixels(_pnm(path))
        else:
            pixels = _png_or_jpeg2000(path, start.startswith(b"\x89PNG"))
    except (BadImage, FileNotFoundError):
        raise
    except MemoryError as error:
        raise BadImage("not enough memory to decode it") from error
    except Exception as error:  # decoders raise many kinds on damaged data
        raise BadImage(f"damaged: {raster.reason(error)}") from error
    alpha = None if pixels.alpha is None else raster.turned(pixels.alpha, header.orientation)
    return pixels._replace(values=raster.turned(pixels.values, header.orientation), alpha=alpha)


def _png_or_jpeg2000(path: Path | bytes, is_png: bool) -> Pixels:
    import imagecodecs

    content = path if isinstance(path, bytes) else path.read_bytes()
    values = np.asarray((imagecodecs.png_decode if is_png else imagecodecs.jpeg2k_decode)(content))
    if values.ndim == 2:
        with Image.open(io.BytesIO(content)) as image:  # one gray level may be transparent
            level = image.info.get("transparency")
        return Pixels(values, None if level is None else (values != level).astype(np.float64))
    if values.shape[2] not in (1, 2, 3, 4):
        raise BadImage(f"its pixels have the shape {values.shape}; expected 1 to 4 channels")
    if values.shape[2] in (2, 4):
        return Pixels(_gray_or_colour(values[..., :-1]), _opacity(values[..., -1]))
    return Pixels(_gray_or_colour(values))


def _gray_or_colour(values: np.ndarray) -> np.ndarray:
    return values[..., 0] if values.shape[2] == 1 else values


def _opacity(channel: np.ndarray) -> np.ndarray:
    """An opacity channel in 0..1. Its full value is the largest number of its bits, such as 4095 of 12 bits in 16."""
    if channel.dtype.kind not in "iu":
        return np.clip(channel, 0.0, 1.0)
    return channel / float(max((1 << int(channel.max()).bit_length()) - 1, 1))


def _tiff(path: Path | bytes, max_pixels: int) -> Pixels:
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # its remarks name no file
    with tifffile.TiffFile(io.BytesIO(path) if isinstance(path, bytes) else path) as file:
        page: Any = file.pages[0]
        if page.imagewidth * page.imagelength > max_pixels or page.size > 8 * max_pixels:
            raise BadImage(f"{page.imagewidth} x {page.imagelength} pixels, over data.max_pixels={max_pixels}")
        photometric = int(page.photometric)
        if photometric not in READ:
            raise BadImage(f"its colours are {NAMES.get(photometric, f'of TIFF kind {photometric}')}; save it as RGB")
        values = page.asarray(maxworkers=1)
        axes, bits, extra = page.axes, int(page.bitspersample), tuple(int(e) for e in page.extrasamples or ())
        colours = page.colormap
    values = values[0] if values.ndim > 2 and axes[0] in "ZI" else values  # the first slice of a stack
    axes = axes[1:] if axes[0] in "ZI" else axes
    values = np.moveaxis(values, 0, -1) if axes.startswith("S") else values
    if values.ndim > 3 or values.ndim < 2:
        raise BadImage(f"its pixels have the shape {values.shape}; expected one image")
    values, alpha, notes = _separated(values, photometric, extra)
    if photometric == PALETTE and colours is not None:
        table = np.moveaxis(np.asarray(colours), 0, -1)
        values = (table >> 8 if table.max() > 255 else table).astype(np.uint8)[values]
    elif photometric == WHITE_IS_SMALL:
        values = _inverted(values, bits)
    elif photometric == CMYK:
        values = _from_cmyk(values)
    elif photometric == LAB:
        values = _from_lab(values)
    return Pixels(values, alpha, extra[:1] == (_PREMULTIPLIED,), notes)


def _separated(values: np.ndarray, photometric: int, extra: tuple[int, ...]):
    """Colours, opacity, and what is said of further channels. Raises `BadImage` for several gray channels."""
    if values.ndim == 2:
        return values, None, ()
    colours = {2: 3, CMYK: 4, LAB: 3}.get(photometric, 1)
    further = values.shape[2] - colours
    if further < 0:
        raise BadImage(f"its pixels have {values.shape[2]} channels; its colours need {colours}")
    own = _gray_or_colour(values[..., :colours])
    if not further:
        return own, None, ()
    if extra[:1] in ((_PREMULTIPLIED,), (_OPACITY,)):
        return own, _opacity(values[..., colours]), ()
    if colours == 1:
        raise BadImage(f"{values.shape[2]} gray channels, whose meaning is not known: save one image per channel")
    return own, None, (FURTHER_CHANNEL,)


def _inverted(values: np.ndarray, bits: int) -> np.ndarray:
    if values.dtype.kind not in "iub":
        return -values
    if values.dtype.itemsize == 8:
        return -values.astype(np.float64)
    return (2**bits - 1 - values.astype(np.int64)).astype(values.dtype)


def _from_cmyk(values: np.ndarray) -> np.ndarray:
    top = float(np.iinfo(values.dtype).max) if values.dtype.kind in "iu" else 1.0
    ink = 1 - values.astype(np.float64) / top
    return np.rint(255 * ink[..., :3] * ink[..., 3:4]).astype(np.uint8)


def _from_lab(values: np.ndarray) -> np.ndarray:
    from PIL import ImageCms

    if values.dtype != np.uint8:
        raise BadImage(f"L*a*b* colours of {values.dtype.itemsize * 8} bits; 8 bits can be read")
    image = Image.frombytes("LAB", (values.shape[1], values.shape[0]), np.ascontiguousarray(values).tobytes())
    to_rgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    converted = ImageCms.applyTransform(image, to_rgb)
    assert converted is not None
    return np.asarray(converted)


def _pnm(path: Path | bytes) -> np.ndarray:
    width, height, _, start = raster.pnm_header(path)
    content = path if isinstance(path, bytes) else path.read_bytes()
    if content[:2] == b"P3":
        values = np.array(content[start:].split()[: width * height * 3], np.uint32)
    else:
        values = np.frombuffer(content, ">u2", width * height * 3, start)
    return values.reshape(height, width, 3).astype(np.uint16)
