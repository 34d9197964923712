"""What the values of a mask mean: whole class numbers, or values that `config.data.mask_values` maps to classes."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deblur_mae_jax.data import deep_images, raster
from deblur_mae_jax.data.listing import printable
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError

BACKGROUND = "background"
# Values of a float mask so close to a whole number are rounded.
NEARLY_WHOLE = 0.01
ROUNDED = "the mask holds values close to whole numbers, such as {}, which are rounded"
CURE = "config.data.mask_values='1=organ,2=lesion' names the class of every value, '#ff0000=lesion' that of a colour"


@dataclasses.dataclass(frozen=True)
class MaskValues:
    """The classes that `config.data.mask_values` gives to the values of masks.

    names: class names, without the background; the class of `names[i]` is `i + 1`.
    numbers: class of each number.
    colours: class of each colour (r, g, b).
    alpha: class of the pixels that are more than half opaque; -1: opacity is not used.
    rest: class of all other values; -1: they are an error.
    """

    names: tuple[str, ...]
    numbers: dict[float, int]
    colours: dict[tuple[int, int, int], int]
    alpha: int = -1
    rest: int = -1

    @property
    def exact(self) -> bool:
        """Whether colours or single numbers are named and everything else has a class too, so that none may change."""
        alone = any(n - 1 not in self.numbers and n + 1 not in self.numbers for n in self.numbers)
        return self.rest >= 0 and (bool(self.colours) or alone)

    def of_numbers(self, values: np.ndarray) -> np.ndarray:
        """The class of every number, uint8. Raises `BadImage` for a number without a class."""
        found, where = np.unique(values, return_inverse=True)
        table = np.array([self._class_of(float(v)) for v in found], np.int64)
        if (table < 0).any():
            missing = ", ".join(f"{v:g}" for v in found[table < 0][:5])
            raise BadImage(f"its mask holds {missing}, which config.data.mask_values does not name")
        return table[where].reshape(values.shape).astype(np.uint8)

    def snapped(self, values: np.ndarray, whole: np.ndarray) -> np.ndarray:
        """`whole`, and instead the named number that a value is close to, such as 0.4 for the float32 0.4."""
        whole = whole.astype(np.float64)
        for number in self.numbers:
            if number != round(number):
                whole = np.where(np.abs(values - number) <= NEARLY_WHOLE, number, whole)
        return whole

    def _class_of(self, value: float) -> int:
        if not np.isfinite(value):  # between two whole numbers
            return self.rest
        return self.numbers.get(value, self.numbers.get(float(round(value)), 0 if value == 0 else self.rest))

    def of_colours(self, pixels: np.ndarray) -> np.ndarray:
        """The class of every colour `(H, W, 3)` uint8, as uint8 `(H, W)`. Raises `BadImage`."""
        codes, where = np.unique(_codes(pixels), return_inverse=True)
        table = np.empty(len(codes), np.int64)
        for i, code in enumerate(codes.tolist()):
            colour = (code >> 16, code >> 8 & 255, code & 255)
            table[i] = self.colours.get(colour, self.rest)
            if table[i] < 0 and len(set(colour)) == 1:  # a gray among the colours
                table[i] = self._class_of(float(colour[0]))
            if table[i] < 0:
                raise BadImage(f"its mask holds the colour {_hex(code)}, which config.data.mask_values does not name")
        return table[where].reshape(pixels.shape[:2]).astype(np.uint8)


def parse(text: str) -> MaskValues | None:
    """Parse `config.data.mask_values`. Returns `None` for "".

    Entries are separated by commas: `1=lesion`, `2+3=organ` (several values), `300-310=vessel` (a range),
    `#ff0000=lesion` (a colour), `alpha=lesion` (opaque pixels), `*=background` (all other values).
    Raises `UserError`.
    """
    if not text.strip():
        return None
    names: list[str] = []
    numbers: dict[float, int] = {}
    colours: dict[tuple[int, int, int], int] = {}
    special = {"alpha": -1, "*": -1}
    for entry in filter(str.strip, text.split(",")):
        values, equals, name = (part.strip() for part in entry.partition("="))
        if not equals or not values or not name or re.search(r"[;=]", name):
            raise UserError(f"config.data.mask_values: '{entry.strip()}' must be VALUE=CLASS, such as 1=lesion")
        if name.lower() != BACKGROUND and name not in names:
            names.append(name)
        number = 0 if name.lower() == BACKGROUND else names.index(name) + 1
        for value in values.split("+"):
            _add(value.strip(), number, numbers, colours, special)
    if len(names) > 255 or not names:
        raise UserError(f"config.data.mask_values='{text}' names {len(names)} classes; there must be 1 to 255")
    return MaskValues(tuple(names), numbers, colours, special["alpha"], special["*"])


def _add(value: str, number: int, numbers: dict, colours: dict, special: dict) -> None:
    """Note the class of a value, a range or a colour. Raises `UserError` if it has another class already."""
    if value in special:
        _set(special, value, number, value, unset=-1)
    elif re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        code = int(value[1:], 16)
        _set(colours, (code >> 16, code >> 8 & 255, code & 255), number, value)
    elif found := re.fullmatch(r"(\d+)-(\d+)", value):
        low, high = int(found[1]), int(found[2])
        if not low <= high <= low + 100_000:
            raise UserError(f"config.data.mask_values: '{value}' is no range of numbers")
        for v in range(low, high + 1):
            _set(numbers, float(v), number, str(v))
    else:
        try:
            plain = float(value)
            if not math.isfinite(plain):
                raise ValueError(value)
        except ValueError as error:
            raise UserError(
                f"config.data.mask_values: '{value}' must be a number, a range such as 1-3, a colour such as #ff0000, "
                "'alpha' or '*'"
            ) from error
        _set(numbers, plain, number, value)


def _set(table: dict, key: Any, number: int, written: str, unset: int | None = None) -> None:
    if table.get(key, unset) not in (unset, number):
        raise UserError(f"config.data.mask_values: '{written}' is given to two classes")
    table[key] = number


def classes(values: np.ndarray, mapping: MaskValues | None) -> tuple[np.ndarray, list[str]]:
    """The class of every value of a mask in gray levels or voxels, uint8, and the assumptions that were made.

    Without a mapping the values are the classes: whole numbers from 0 to 255. Raises `BadImage`.
    """
    notes: list[str] = []
    if values.dtype == bool:
        return values.astype(np.uint8) * 255 if mapping is None else mapping.of_numbers(values * 255), notes
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise BadImage("its mask holds NaN or infinite values")
        whole = np.rint(values)
        if mapping is not None:
            whole = mapping.snapped(values, whole)
        apart = np.abs(values - whole)
        if mapping is None or mapping.rest < 0:
            worst = int(apart.argmax())
            if apart.flat[worst] > NEARLY_WHOLE:
                raise BadImage(
                    f"its mask holds {values.flat[worst]:.6g}, and a class is a whole number: round or threshold soft "
                    f"masks first. {CURE}"
                )
            if apart.flat[worst] > 0:
                notes.append(ROUNDED.format(f"{values.flat[worst]:.7g}"))
        if mapping is not None and mapping.rest >= 0:
            whole = np.where(apart > NEARLY_WHOLE, np.inf, whole)
        values = whole
    if mapping is not None:
        return mapping.of_numbers(values), notes
    low, high = values.min(), values.max()
    if low < 0 or high > 255:
        raise BadImage(
            f"its mask holds {low if low < 0 else high:g}, and without config.data.mask_values a class is a number "
            f"from 0 to 255. {CURE}"
        )
    return values.astype(np.uint8), notes


@dataclasses.dataclass(frozen=True)
class MaskFile:
    """Reads masks of 2-D images.

    values: the mapping of `config.data.mask_values`.
    max_pixels: larger files are refused.
    """

    values: MaskValues | None = None
    max_pixels: int = 50_000_000

    def read(self, path: Path, image: raster.Header) -> tuple[np.ndarray, list[str]]:
        """The class of every pixel, uint8 `(H, W)` upright, and the assumptions that were made. Raises `BadImage`.

        image: the header of the image that the mask belongs to.
        """
        try:
            return self._read(path, image)
        except BadImage as error:
            text = str(error)
            raise BadImage(text if "mask" in text else f"its mask '{printable(path.name)}': {text}") from error

    def _read(self, path: Path, image: raster.Header) -> tuple[np.ndarray, list[str]]:
        with raster.opened(path, self.max_pixels) as (header, opened):
            if header.frames > 1:
                raise BadImage(f"its mask has {header.frames} frames or pages; expected one image")
            pixels, alpha, notes = self._pixels(path, header, opened)
        turn = _turn(pixels.shape[:2], header, image, notes)
        if turn != 1:
            pixels, alpha = raster.turned(pixels, turn), None if alpha is None else raster.turned(alpha, turn)
        values, more = self._classes(pixels, alpha)
        found = np.unique(values)
        unclear = len(found) > 2 or 0 < int(found[-1]) - int(found[0]) < 64
        if header.lossy and (unclear if self.values is None else self.values.exact):
            raise BadImage(
                f"its mask was saved as JPEG or in another way that changes values ({len(found)} different ones): save "
                f"masks as PNG, or name ranges of values: config.data.mask_values='0-127=background,128-255=lesion'"
            )
        return values, notes + more

    def _pixels(self, path: Path, header: raster.Header, opened: Image.Image | None):
        """Values or colours, upright; opacity; notes."""
        notes: list[str] = []
        if opened is None or header.deep:
            deep = deep_images.read(path, header, self.max_pixels)
            pixels, alpha = deep.values, deep.alpha
            notes += deep.notes
        else:
            try:
                by_colour = self.values is not None and bool(self.values.colours)
                if opened.mode == "P" and not by_colour:
                    notes += _palette_notes(opened)
                pixels, alpha = pixels_of(opened.convert("RGB") if opened.mode == "P" and by_colour else opened)
                raster.require_end(path)
            except BadImage:
                raise
            except Exception as error:  # Pillow's decoders raise many kinds on damaged data
                raise BadImage(f"its mask is damaged: {raster.reason(error)}") from error
            if not header.applied:
                pixels = raster.turned(pixels, header.orientation)
                alpha = None if alpha is None else raster.turned(alpha, header.orientation)
        if header.white_is_small and pixels.ndim == 2 and pixels.dtype.kind in "iub":
            pixels = _stored_if_numbers(pixels, notes)
        largest = 255 if opened is None or header.deep else raster.largest_gray(path, opened)
        if largest < 255 and pixels.dtype == np.uint8 and pixels.ndim == 2:  # Pillow spreads its numbers over 0..255
            pixels = np.rint(pixels * (largest / 255)).astype(np.uint8)
        if opened is not None and opened.format == "PPM" and pixels.ndim == 2 and pixels.dtype.itemsize > 1:
            # Pillow spreads the numbers of a deep PGM over 0..65535.
            pixels = np.rint(pixels * (raster.pnm_header(path)[2] / 65535)).astype(pixels.dtype)
        return pixels, alpha, notes

    def _classes(self, pixels: np.ndarray, alpha: np.ndarray | None) -> tuple[np.ndarray, list[str]]:
        mapping = self.values
        if mapping is not None and mapping.alpha >= 0:
            if alpha is None:
                raise BadImage("its mask has no opacity (alpha channel), which config.data.mask_values asks for")
            return np.where(alpha > 0.5, mapping.alpha, max(mapping.rest, 0)).astype(np.uint8), []
        if alpha is not None and alpha.min() < 1:
            if mapping is None or len(np.unique(alpha)) > 2:
                raise BadImage(
                    "its mask is partly transparent, so that it has two meanings: its colours and its opacity. Save it "
                    "without opacity, or use the opacity: config.data.mask_values='alpha=lesion'"
                )
            pixels = pixels * (alpha > 0.5)[(...,) + (None,) * (pixels.ndim - 2)]
        if pixels.ndim == 3:
            if (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all():
                pixels = pixels[..., 0]
            elif mapping is None:
                raise BadImage(_colour_message(pixels))
            elif pixels.dtype != np.uint8:
                raise BadImage(f"its mask holds colours of {pixels.dtype.itemsize * 8} bits; expected 8")
            else:
                return mapping.of_colours(pixels), []
        return classes(pixels, mapping)


def join(masks: list[np.ndarray]) -> np.ndarray:
    """Join several masks of one image, such as one per lesion: the largest class of every pixel."""
    out = masks[0]
    if len(masks) > 1 and any(len(np.unique(mask)) > 2 for mask in masks):
        raise BadImage("it has several masks, and one of them holds several classes: give one mask per image")
    for mask in masks[1:]:
        if mask.shape != out.shape:
            raise BadImage(f"its masks have the shapes {out.shape} and {mask.shape}")
        out = np.maximum(out, mask)
    return out


def edge_values(mask: np.ndarray) -> tuple[list[int], list[int]]:
    """The values of a mask that fill a square of 3 x 3 pixels somewhere (a cube of 27 voxels), and the others.

    Masks that were smoothed or resized have values that occur only between two regions.
    """
    values = set(np.unique(mask).tolist())
    mask = mask.squeeze()  # a volume of one slice is an image
    if min(mask.shape, default=0) < 3:
        return sorted(values), []
    middle, same = mask, np.ones(mask.shape, bool)
    for axis in range(mask.ndim):  # rows of three equal values, then three such rows, then three such squares
        before, centre, after = (
            tuple(slice(i, n - 2 + i) if a == axis else slice(None) for a, n in enumerate(middle.shape))
            for i in range(3)
        )
        equal = (middle[before] == middle[centre]) & (middle[after] == middle[centre])
        same = same[before] & same[centre] & same[after] & equal
        middle = middle[centre]
    inside = set(np.unique(middle[same]).tolist())
    return sorted(inside), sorted(values - inside)


def looks_like_mask(path: str) -> bool:
    """Whether the pixels of an image file are those of a mask: few values, in even regions. False if unreadable."""
    try:
        with raster.opened(Path(path), 50_000_000) as (header, opened):
            if opened is None or header.deep:
                pixels = deep_images.read(Path(path), header, 50_000_000).values
            else:
                pixels, _ = pixels_of(opened)
    except (BadImage, OSError, ValueError, SyntaxError):
        return False
    if pixels.ndim == 3:
        pixels = _codes(pixels) if pixels.dtype == np.uint8 else pixels[..., 0]
    values, counts = np.unique(pixels, return_counts=True)
    if len(values) <= 8:
        return True
    if header.lossy and pixels.dtype == np.uint8:  # a mask with the noise of JPEG
        peaks = values[np.argsort(-counts)[:2]].astype(int)
        near = sum(counts[np.abs(values.astype(int) - peak) <= 8].sum() for peak in peaks)
        return abs(peaks[0] - peaks[-1]) > 16 and bool(near >= 0.97 * counts.sum())
    common = counts[np.argsort(-counts)[:8]].sum()
    return bool(common >= 0.98 * counts.sum()) and counts.max() < 0.98 * counts.sum()


def pixels_of(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Values `(H, W)` or colours `(H, W, 3)` of a mask, and its opacity in 0..1. Palettes give their indices."""
    image.load()
    if image.mode == "1":
        return np.asarray(image), None
    if image.mode == "P":
        return np.asarray(image), None
    if image.mode in ("LA", "RGBA", "PA"):
        alpha = np.asarray(image.getchannel("A")) / 255.0
        return np.asarray(image.convert("L" if image.mode == "LA" else "RGB")), alpha
    if image.mode in ("L", "I", "F") or image.mode.startswith("I;16"):
        return np.asarray(image), None
    return np.asarray(image.convert("RGB")), None


def _palette_notes(image: Image.Image) -> list[str]:
    """Refuse a palette in which the background, index 0, is not dark; say the colours of the others."""
    colours = np.asarray(image.getpalette("RGB"), int).reshape(-1, 3)
    used = [int(v) for v in np.unique(np.asarray(image)) if v < len(colours)]
    gray = all(colours[v].tolist() == [v, v, v] for v in used)
    if gray or not used:
        return []
    if 0 in used and colours[0].max() > 64 and any(colours[v].max() <= 64 for v in used):
        raise BadImage(
            f"its mask has a palette in which 0 is {_hex(_code(colours[0]))} and another number is black, so the "
            "background is not clear: name the colours with config.data.mask_values='#ffffff=lesion,#000000=background'"
        )
    shown = ", ".join(f"{v} is {_hex(_code(colours[v]))}" for v in used[:6] if v)
    return [f"the class of a mask with a palette is the number of the colour: {shown}"] if shown else []


def _stored_if_numbers(pixels: np.ndarray, notes: list[str]) -> np.ndarray:
    """The stored numbers of a mask in which small is white, if they are class numbers and not black and white."""
    top = int(np.iinfo(pixels.dtype).max) if pixels.dtype != bool else 1
    if set(np.unique(pixels).tolist()) <= {0, top}:
        return pixels
    notes.append("small values are white in the mask (TIFF); the stored numbers are its classes")
    return (top - pixels.astype(np.int64)).astype(pixels.dtype)


def _turn(shape: tuple[int, ...], mask: raster.Header, image: raster.Header, notes: list[str]) -> int:
    """The orientation by which an upright mask still has to be turned to lie on its upright image.

    Many programs draw masks on the pixels as stored, without the orientation of the image. Raises `BadImage`.
    """
    if mask.orientation != 1 or image.orientation == 1:
        if shape == image.upright:
            return 1
    elif shape == (image.height, image.width):
        if shape == image.upright:  # drawn on the stored pixels or on the upright ones: both have this shape
            notes.append("the image is turned by its orientation (EXIF) and its mask has none: it is turned too")
        return image.orientation
    elif shape == image.upright:
        return 1
    raise BadImage(f"its mask is {shape[1]} x {shape[0]} pixels, the image {image.upright[1]} x {image.upright[0]}")


def _codes(pixels: np.ndarray) -> np.ndarray:
    wide = pixels.astype(np.int64)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def _code(colour: np.ndarray) -> int:
    return int(colour[0]) << 16 | int(colour[1]) << 8 | int(colour[2])


def _hex(code: int) -> str:
    return f"#{code:06x}"


def _colour_message(pixels: np.ndarray) -> str:
    codes = np.unique(_codes(pixels)) if pixels.dtype == np.uint8 else np.array([], int)
    shown = ", ".join(_hex(int(code)) for code in codes[:6]) or "of more than 8 bits"
    classes = [f"{_hex(int(code))}={f'class{i}' if code else 'background'}" for i, code in enumerate(codes[:6])]
    named = ",".join(classes) if 0 < len(codes) <= 6 else "#000000=background,#ff0000=lesion,..."
    return (
        f"its mask holds colours ({shown}{' ...' if len(codes) > 6 else ''}), and a class is a number: name the "
        f"colours with config.data.mask_values='{named}'"
    )
