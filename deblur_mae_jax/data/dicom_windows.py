"""Map the stored gray values of a DICOM picture to gray levels: rescaling, windows, lookup tables (PS3.3 C.11)."""

from __future__ import annotations

from typing import Any

import numpy as np

from deblur_mae_jax.data import dicom_suv
from deblur_mae_jax.data.decode import range_of
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import UserError

# Named windows of Hounsfield units: centre and width.
WINDOWS = {"lung": (-600, 1500), "soft": (40, 400), "bone": (400, 1800), "brain": (40, 80), "liver": (60, 150)}
NO_INTERCEPT = "CT without RescaleIntercept: its stored values are taken as Hounsfield units"
NO_WINDOW = "the file has no window, so its own range of values is mapped to gray levels; config.data.window sets one"
NO_WIDTH = "its window has no width, so it is not used"
ONLY_CT = "config.data.window names a window of CT, so it is not used for files of other modalities"


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


def group(values: Any, frame: int, name: str) -> Any:
    """The data set with a group of fields: of the frame, shared by all frames, or the header itself.

    name: the sequence in the functional groups of an enhanced multi-frame file.
    """
    frames = values.get("PerFrameFunctionalGroupsSequence", None) or []
    shared = values.get("SharedFunctionalGroupsSequence", None) or []
    for place in (*frames[frame : frame + 1], *shared[:1]):
        found = place.get(name, None)
        if found:
            return found[0]
    return values


def rescale(transform: Any) -> tuple[float, float]:
    """Slope and intercept of a header. Raises `BadImage` for values that no picture can have."""
    number = lambda name, default: default if transform.get(name, None) in (None, "") else float(transform[name].value)
    slope, intercept = number("RescaleSlope", 1.0), number("RescaleIntercept", 0.0)
    if slope == 0 or not np.isfinite([slope, intercept]).all():
        raise BadImage(f"RescaleSlope is {slope:g} and RescaleIntercept {intercept:g}")
    return slope, intercept


def eight_bits(stored: np.ndarray, values: Any, frame: int, window: str, notes: list[str]) -> np.ndarray:
    """Stored gray values `(H, W)` as gray levels, uint8 `(H, W)`.

    window: `config.data.window`; "": the first window or lookup table of the file, else its range of values.
    notes: assumptions are added.
    """
    transform = group(values, frame, "PixelValueTransformationSequence")
    slope, intercept = rescale(transform)
    rescaled = stored * slope + intercept
    if transform.get("ModalityLUTSequence"):
        entries, first, _ = table(transform.ModalityLUTSequence[0], "LUT{}")
        rescaled = looked_up(stored, entries, first - 2**16 if first >= 2**15 and stored.min() < 0 else first) * 1.0
    elif window and values.get("Modality") == "CT" and transform.get("RescaleIntercept") is None:
        notes.append(NO_INTERCEPT)
    if window and window not in WINDOWS and values.get("Modality") == "PT":
        rescaled = rescaled * dicom_suv.factor(values, transform)
        notes.append(dicom_suv.NOTE)
    if window in WINDOWS and values.get("Modality") != "CT":
        notes.append(ONLY_CT)
        window = ""
    own = group(values, frame, "FrameVOILUTSequence")
    share = None
    if window:
        share = _linear(rescaled, *(window_of(window) or (0.0, 1.0)))
    elif own.get("VOILUTSequence"):
        share = _by_table(rescaled, own)
    else:
        share = _by_window(rescaled, own, notes)
    if share is None:
        plain = stored.dtype == np.uint8 and int(values.get("BitsStored", 8)) == 8 and np.array_equal(rescaled, stored)
        if plain:
            share = rescaled / 255.0
        else:
            notes.append(NO_WINDOW)
            inside = rescaled[~padding(stored, values)]
            inside = inside if inside.size else rescaled
            share = _linear(rescaled, *range_of(inside, notes))
    levels = np.rint(np.clip(share, 0, 1) * 255.0).astype(np.uint8)
    if values.get("PhotometricInterpretation") == "MONOCHROME1":
        levels = 255 - levels
    levels[padding(stored, values)] = 0  # no measurement: black, as outside of the picture
    return levels


def _linear(rescaled: np.ndarray, low: float, high: float) -> np.ndarray:
    return (rescaled - low) / max(high - low, 1e-12)


def _by_window(rescaled: np.ndarray, values: Any, notes: list[str]) -> np.ndarray | None:
    """The share of the range of gray levels by the first window of a file (PS3.3 C.11.2.1); `None` without one."""
    centre, width = _first(values, "WindowCenter"), _first(values, "WindowWidth")
    if centre is None and width is None:
        return None
    function = str(values.get("VOILUTFunction", "") or "LINEAR").upper()
    if centre is None or width is None or width <= 0 or (function == "LINEAR" and width < 1):
        notes.append(NO_WIDTH)
        return None
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (rescaled - centre) / width, -700, 700)))
    if function == "LINEAR_EXACT":
        return _linear(rescaled, centre - width / 2, centre + width / 2)
    return _linear(rescaled, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2)


def _first(values: Any, name: str) -> float | None:
    """The first value of a field, or `None` if it is absent or empty."""
    found = values.get(name, None)
    listed = [v for v in np.atleast_1d(np.asarray(found, dtype=object)) if v is not None and str(v).strip()]
    number = float(listed[0]) if listed else None
    return number if number is not None and np.isfinite(number) else None


def _by_table(rescaled: np.ndarray, values: Any) -> np.ndarray:
    """The share of the range of gray levels by the first VOI lookup table of a file (PS3.3 C.11.2.1.1)."""
    entries, first, bits = table(values.VOILUTSequence[0], "LUT{}")
    if first >= 2**15 and rescaled.min() < 0:  # a negative first value, stored as an unsigned number
        first -= 2**16
    levels = looked_up(np.rint(rescaled), entries, first).astype(np.float64)
    # Some tables state 16 bits and hold fewer: their range is that of the fewest bits that hold the table.
    used = int(entries.max()).bit_length() if bits == 16 else bits
    return levels / (2 ** max(1, used) - 1)


def table(item: Any, name: str) -> tuple[np.ndarray, int, int]:
    """The entries of a lookup table, the number of the first one, and the bits of an entry (PS3.3 C.11.1.1.1).

    pydicom's own lookup counts the entries of a table of 8 bits with 8 bits.

    name: of its attributes, with braces in place of `Data` and `Descriptor`.
    """
    count, first, bits = (int(v) for v in item[name.format("Descriptor")].value)
    count = count or 2**16
    data = item[name.format("Data")].value
    if isinstance(data, bytes):
        wide = bits > 8 or len(data) >= 2 * count  # entries of 8 bits may be stored in words
        kind = f"{byte_order(item)}u2" if wide else "u1"
        data = np.frombuffer(data[: len(data) // (1 + wide) * (1 + wide)], kind)
        if not wide and byte_order(item) == ">":  # words of two entries, the first one in the lower byte
            data = data[: len(data) // 2 * 2].reshape(-1, 2)[:, ::-1].ravel()
    entries = np.asarray(data).astype(np.int64)[:count]
    if not entries.size:
        raise BadImage("its lookup table is empty")
    return entries, first, bits


def byte_order(values: Any) -> str:
    """The order of the bytes of 16-bit words in a file: "<", or ">" for a big-endian one."""
    little = getattr(values, "original_encoding", (None, True))[1]
    return ">" if little is False else "<"


def looked_up(values: np.ndarray, entries: np.ndarray, first: int) -> np.ndarray:
    """The entries of values; those outside of the table get its first or last entry."""
    return entries[np.clip(values.astype(np.int64) - first, 0, len(entries) - 1)]


def padding(stored: np.ndarray, values: Any) -> np.ndarray:
    """Where pixels hold PixelPaddingValue, which stands for no measurement."""
    low = values.get("PixelPaddingValue", None)
    if low in (None, ""):
        return np.zeros(stored.shape, bool)
    high = values.get("PixelPaddingRangeLimit", None)
    word = 2 ** (8 * stored.dtype.itemsize) - 1  # the value may be stored as signed or as unsigned
    first, last = sorted((int(low), int(low if high in (None, "") else high)))
    if first == last:
        own = 2 ** int(values.get("BitsStored", 0) or 8 * stored.dtype.itemsize) - 1
        if int(values.get("PixelRepresentation", 0) or 0) == 0 and own < (first & word):
            word = own  # the bits of the value above BitsStored are cut off like those of the pixels
        return (stored.astype(np.int64) & word) == (first & word)
    return (stored >= first) & (stored <= last)
