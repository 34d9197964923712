"""Find copies of images: resized, recompressed, with other gray levels, flipped, turned, or cropped.

Candidates have similar perceptual hashes: of the whole images, of their mirror images, and of parts of them. Flipped
and cropped candidates are confirmed by the correlation of their pixels, so that few other images are named.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from scipy import fft

from deblur_mae_jax.data.source import BadImage, Source

SIDE = 16
# Largest number of differing bits, of SIDE ** 2, for copies of the whole image, and for candidates that are confirmed
# by their pixels. 40 bits find 199 of the 200 near-duplicates that BUSI and MMOTU list, and 62 pairs (of 880,000) that
# they do not list, among them the same image under two labels. 24 bits find 171.
NEAR_BITS, CANDIDATE_BITS = 40, 72
# Correlation of the pixels of a flipped or a cropped copy with the original.
CONFIRMED = 0.93
# Parts of an image whose hashes are compared with those of whole images: sides relative to the image.
SCALES = (0.95, 0.85, 0.75)
POSITIONS = (0.0, 1 / 3, 2 / 3, 1.0)
SMALL = 128
FLIPS = {
    "mirrored": Image.Transpose.FLIP_LEFT_RIGHT, "upside down": Image.Transpose.FLIP_TOP_BOTTOM,
    "turned by 180 degrees": Image.Transpose.ROTATE_180,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Copy:
    """Two images, one of which looks like a copy of the other.

    first, second: their indices.
    kind: "identical", "near-identical", "mirrored", "upside down", "turned by 180 degrees" or "cropped".
    score: share of equal bits, or the correlation of the pixels.
    """

    first: int
    second: int
    kind: str
    score: float


def gray_of(pixels: np.ndarray) -> Image.Image:
    """An image `(H, W, C)` as a gray picture."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("L")


def hashes_of(images: Sequence[Image.Image]) -> np.ndarray:
    """Perceptual hashes `(N, SIDE ** 2)`, of +1 and -1, as `imagehash.phash` computes them."""
    small = [np.asarray(image.resize((4 * SIDE, 4 * SIDE), Image.Resampling.LANCZOS), np.float64) for image in images]
    low = fft.dctn(np.stack(small), axes=(1, 2))[:, :SIDE, :SIDE].reshape(len(images), -1)
    return np.where(low > np.median(low, axis=1, keepdims=True), 1, -1).astype(np.int8)


def boxes(width: int, height: int) -> list[tuple[float, float, float, float]]:
    """The parts of an image whose hashes are computed."""
    out = []
    for across, down, x, y in itertools.product(SCALES, SCALES, POSITIONS, POSITIONS):
        left, top = (1 - across) * width * x, (1 - down) * height * y
        out.append((left, top, left + across * width, top + down * height))
    return out


def find(
    source: Source,
    hashes: Sequence[str],
    *,
    cropped: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[Copy]:
    """All pairs of copies among the images of a source.

    hashes: hash of the pixels of each image, "" if unknown.
    cropped: look for parts of images too, which takes some 30 times as long.
    progress: called with the number of images read, and of all images.
    """
    found: dict[tuple[int, int], Copy] = {}
    by_hash: dict[str, int] = {}
    for i, value in enumerate(hashes):
        if value and value in by_hash:
            found[by_hash[value], i] = Copy(by_hash[value], i, "identical", 1.0)
        elif value:
            by_hash[value] = i
    whole, mirrored, parts, pictures = _read(source, cropped, progress)
    for i, j, bits in _near(whole, whole, NEAR_BITS):
        if i < j:
            found.setdefault((i, j), Copy(i, j, "near-identical", 1 - bits / SIDE**2))
    for kind, codes in mirrored.items():
        for i, j, _ in _near(codes, whole, CANDIDATE_BITS):
            if i < j and (i, j) not in found:
                score = _correlation(pictures[i].transpose(FLIPS[kind]), pictures[j])
                if score >= CONFIRMED:
                    found[i, j] = Copy(i, j, kind, score)
    checked = set()
    for row, j, _ in _near(parts, whole, CANDIDATE_BITS) if cropped else ():
        i = row // len(boxes(1, 1))
        pair = (min(i, j), max(i, j))
        if i == j or pair in found or (i, j) in checked:
            continue
        checked.add((i, j))
        score = part_score(pictures[i], pictures[j])
        if score >= CONFIRMED:
            found[pair] = Copy(*pair, "cropped", score)
    return sorted(found.values(), key=lambda copy: (copy.first, copy.second))


def _read(source: Source, cropped: bool, progress: Callable[[int, int], None] | None):
    """Hashes of all images, of their mirror images and of their parts, and small pictures of them."""
    whole, parts, pictures = [], [], []
    mirrored: dict[str, list[np.ndarray]] = {kind: [] for kind in FLIPS}
    for i in range(len(source)):
        try:
            image = gray_of(np.asarray(source.read(i)))
        except (BadImage, OSError):  # readable when it was checked, but no longer
            image = Image.fromarray(np.random.default_rng(i).integers(0, 256, (64, 64)).astype(np.uint8))
        whole.append(hashes_of([image])[0])
        small = image.resize((SMALL, SMALL), Image.Resampling.LANCZOS)
        pictures.append(small)
        for kind, flip in FLIPS.items():
            mirrored[kind].append(hashes_of([small.transpose(flip)])[0])
        if cropped:
            side = 4 * SIDE
            views = [small.resize((side, side), Image.Resampling.BILINEAR, box=box) for box in boxes(SMALL, SMALL)]
            parts.append(hashes_of(views))
        if progress is not None:
            progress(i + 1, len(source))
    empty = np.zeros((0, SIDE**2), np.int8)
    return (
        np.stack(whole) if whole else empty,
        {kind: np.stack(codes) if codes else empty for kind, codes in mirrored.items()},
        np.concatenate(parts) if parts else empty,
        pictures,
    )


def _near(left: np.ndarray, right: np.ndarray, bits: int):
    """Yield (row of `left`, row of `right`, differing bits) for hashes that differ in at most so many bits."""
    other = right.astype(np.float32).T
    for start in range(0, len(left), 512):
        apart = (left.shape[1] - left[start : start + 512].astype(np.float32) @ other) / 2
        for row, column in zip(*np.nonzero(apart <= bits), strict=True):
            yield start + int(row), int(column), int(apart[row, column])


def _correlation(one: Image.Image, two: Image.Image) -> float:
    """Correlation of the pixels of two small pictures of equal size."""
    a, b = (np.asarray(image.resize((64, 64)), np.float64).ravel() for image in (one, two))
    if a.std() < 1e-9 or b.std() < 1e-9:
        return 0.0
    return float(np.corrcoef(a, b)[0, 1])


def part_score(whole: Image.Image, part: Image.Image) -> float:
    """The best correlation of `part` with any part of `whole`, over places and over both sides' scales.

    Both pictures are squares, whatever the shapes of the images, so a part may be narrower or lower than its whole.
    """
    coarse = [(float(x), float(y)) for x, y in itertools.product(np.linspace(0.68, 1.0, 9), repeat=2)]
    half = whole.resize((SMALL // 2, SMALL // 2), Image.Resampling.LANCZOS)
    scores = [_best_place(half, part, scales) for scales in coarse]
    best = max(scores)
    if best < 0.75:
        return best
    x, y = coarse[int(np.argmax(scores))]
    steps = (-0.03, -0.015, 0.0, 0.015, 0.03)
    fine = [(min(1.0, x + dx), min(1.0, y + dy)) for dx, dy in itertools.product(steps, steps)]
    return max(best, *(_best_place(whole, part, scales) for scales in fine))


def _best_place(whole: Image.Image, part: Image.Image, scales: tuple[float, float]) -> float:
    """The best correlation of a part of this size (share of the width, of the height) over all places."""
    size = (round(whole.width * scales[0]), round(whole.height * scales[1]))
    template = np.asarray(part.resize(size, Image.Resampling.LANCZOS), np.float64)
    template = template - template.mean()
    norm = float(np.sqrt((template**2).sum()))
    if norm < 1e-9:
        return 0.0
    return float((_matches(np.asarray(whole, np.float64), template) / norm).max())


def _matches(picture: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Products of a template of mean 0 with every part of a picture, divided by the spread of the part."""
    rows, columns = template.shape
    shape = [picture.shape[0] + rows - 1, picture.shape[1] + columns - 1]
    product = fft.irfft2(fft.rfft2(picture, shape) * fft.rfft2(template[::-1, ::-1], shape), shape)
    product = product[rows - 1 : picture.shape[0], columns - 1 : picture.shape[1]]
    sums = [_window_sums(values, rows, columns) for values in (picture, picture**2)]
    spread = np.sqrt(np.maximum(sums[1] - sums[0] ** 2 / (rows * columns), 1e-9))
    return product / spread


def _window_sums(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    total = np.pad(values, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    return total[rows:, columns:] - total[:-rows, columns:] - total[rows:, :-columns] + total[:-rows, :-columns]
