"""A page that shows a data set before training: the table, and contact sheets with the masks drawn on the images."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from deblur_mae_jax.data.index import Index
from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.reports import page

TILE = 144
COLUMNS = 8
ROWS = 40
# Colours of the outlines of the classes 1, 2, ... of a mask.
COLOURS = ((255, 210, 0), (0, 200, 255), (255, 80, 80), (80, 255, 120), (230, 120, 255), (255, 150, 40))


def outlined(image: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """An image `(H, W, C)` in gray levels as RGB, with the outline of every region of its mask `(H, W)`."""
    out = np.repeat(image[..., :1], 3, axis=2) if image.shape[2] == 1 else image[..., :3].copy()
    out = np.ascontiguousarray(out)
    if mask is None:
        return out
    padded = np.pad(mask.astype(np.int32), 1, mode="edge")
    around = [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    edge = np.any([neighbour != mask for neighbour in around], axis=0) & (mask > 0)
    for number, value in enumerate(np.unique(mask[edge])):
        out[edge & (mask == value)] = COLOURS[number % len(COLOURS)]
    return out


def tile(index: Index, number: int) -> np.ndarray:
    """A square thumbnail of an image with its mask, `(TILE, TILE, 3)` uint8. A volume shows one slice.

    A mask that cannot be used is not drawn.
    """
    pixels = np.asarray(index.source.read(number))
    mask = _mask(index, number)
    if pixels.ndim == 4:
        pixels, mask = _slice(pixels[..., 0].astype(np.float32), mask)
    scale = TILE / max(pixels.shape[:2])
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    gray = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    small = np.asarray(gray.resize(size, Image.Resampling.BILINEAR))
    if mask is not None:
        mask = np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
    out = np.full((TILE, TILE, 3), 255, np.uint8)
    top, left = (TILE - size[1]) // 2, (TILE - size[0]) // 2
    out[top : top + size[1], left : left + size[0]] = outlined(small, mask)
    return out


def _mask(index: Index, number: int) -> np.ndarray | None:
    """The mask of an image; `None` if it has none that can be used."""
    source = index.source
    if source.masks is None or (source.masked is not None and not source.masked[number]):
        return None
    try:
        return source.masks(number)
    except (BadImage, OSError):
        return None


def _slice(volume: np.ndarray, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The axial slice with the largest mask, or the middle one, as gray levels `(H, W, 1)`, front upwards."""
    middle = volume.shape[2] // 2
    if mask is not None and mask.any():
        middle = int((mask > 0).sum(axis=(0, 1)).argmax())
    low, high = np.percentile(volume, [1, 99])
    gray = np.clip((volume[..., middle] - low) / max(float(high - low), 1e-6), 0, 1) * 255
    turn = lambda a: np.ascontiguousarray(a.T[::-1])
    shown = turn(gray.astype(np.uint8))[..., None]
    return shown, None if mask is None else turn(mask[..., middle])


def sheet(index: Index, rows: dict[str, np.ndarray]) -> Image.Image:
    """A contact sheet: a row for every entry of `rows`, with up to `COLUMNS` of its images, evenly spaced.

    rows: numbers of the images of each row, by the label of the row.
    """
    tiles, labels = [], []
    for label, numbers in list(rows.items())[:ROWS]:
        chosen = numbers[np.unique(np.linspace(0, len(numbers) - 1, COLUMNS).astype(int))]
        row = []
        for number in chosen:
            try:
                row.append(tile(index, int(number)))
            except (BadImage, OSError):  # readable when it was checked, but no longer
                row.append(np.full((TILE, TILE, 3), 128, np.uint8))
        tiles.append(row)
        labels.append(f"{label}\n{len(numbers)}")
    return page.sheet(tiles, [""] * max(map(len, tiles)), labels, TILE)


def write(
    folder: Path, title: str, table: Sequence[tuple[str, str]], index: Index, rows: dict[str, np.ndarray]
) -> Path:
    """Write `index.html` and `contact_sheet.png` into `folder`. Returns the path of the page."""
    folder.mkdir(parents=True, exist_ok=True)
    image = sheet(index, rows)
    image.save(folder / "contact_sheet.png")
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in table)
    more = f"<p class=note>The first {ROWS} of {len(rows)} rows are shown.</p>" if len(rows) > ROWS else ""
    return page.write(folder, title, [
        f"<table>{cells}</table>",
        "<p class=note>One row per split and class, with its number of images. Masks that can be used are drawn as "
        "outlines.</p>", more,
        page.embedded(page.png_of(image), "contact sheet"),
    ])  # fmt: skip
