"""Segment an image of any size with windows of one size and blend their overlaps (MONAI's sliding window)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from deblur_mae_jax.errors import UserError, unknown

BLENDINGS = ("gaussian", "constant")
# Sigma of the Gaussian as a share of the window's side, and the smallest weight of a voxel.
SIGMA = 0.125
FLOOR = 1e-3

Predict = Callable[[np.ndarray], Any]  # windows (B, *window, C) -> scores (B, *window, K)


def check(overlap: float, blending: str) -> None:
    """Raise `UserError` for invalid settings."""
    if blending not in BLENDINGS:
        raise unknown("config.infer.blending", blending, BLENDINGS)
    if not 0 <= overlap < 1:
        raise UserError(f"config.infer.overlap={overlap} must be in [0, 1)")


def starts(size: int, window: int, overlap: float) -> list[int]:
    """Start indices of the windows along an axis of `size` (at least `window`); the last window ends at the edge."""
    if size <= window:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    count = -(-(size - window) // step) + 1
    return [min(i * step, size - window) for i in range(count)]


def importance(window: tuple[int, ...], blending: str) -> np.ndarray:
    """Weight of each voxel of a window, `(*window,)` float32: highest in the middle, or constant."""
    out = np.ones(window, np.float32)
    if blending == "constant":
        return out
    for axis, side in enumerate(window):
        offset = np.arange(side) - (side - 1) / 2
        bell = np.exp(-0.5 * (offset / (SIGMA * side)) ** 2).astype(np.float32)
        out = out * bell.reshape([-1 if i == axis else 1 for i in range(len(window))])
    return np.maximum(out, max(float(out.min()), FLOOR))


def infer(
    image: np.ndarray,
    predict: Predict,
    window: tuple[int, ...],
    *,
    overlap: float = 0.5,
    blending: str = "gaussian",
    batch_size: int = 4,
    finish: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Return the blended scores `(*space, K)` of an image `(*space, C)`, or the result of `finish` on them.

    An image smaller than the window is padded with zeros on all sides. The scores in memory never cover more planes
    than the depth of one window, however large the image is.

    predict: always called with `batch_size` windows, so it is compiled only once.
    finish: `(planes, ..., K) -> (planes, ...)`, such as an argmax; applied to groups of planes.
    """
    check(overlap, blending)
    space = image.shape[:-1]
    before = [max(0, w - n) // 2 for n, w in zip(space, window, strict=True)]
    after = [max(0, w - n) - b for n, w, b in zip(space, window, before, strict=True)]
    padded = np.pad(image, [*zip(before, after, strict=True), (0, 0)])
    sides = [starts(n, w, overlap) for n, w in zip(padded.shape[:-1], window, strict=True)]
    weight = importance(window, blending)
    finish = finish or (lambda scores: scores)

    finished: list[np.ndarray] = []
    first = 0  # index of the first plane in `scores`
    scores: Any = None
    total = np.zeros((window[0], *padded.shape[1:-1], 1), np.float32)

    def flush(planes: int) -> None:
        """Emit the planes that no later window can touch."""
        nonlocal scores, total, first
        if planes:
            finished.append(finish(scores[:planes] / total[:planes]))
            empty = np.zeros_like(scores[:planes])
            scores = np.concatenate([scores[planes:], empty])
            total = np.concatenate([total[planes:], empty[..., :1]])
            first += planes

    for corner, out in _windows(padded, predict, sides, window, batch_size):
        if scores is None:
            scores = np.zeros((*total.shape[:-1], out.shape[-1]), np.float32)
        flush(corner[0] - first)
        where = (
            slice(None),
            *(slice(p, p + w) for p, w in zip(corner[1:], window[1:], strict=True)),
        )
        scores[where] += weight[..., None] * out
        total[where] += weight[..., None]
    flush(window[0])
    result = np.concatenate(finished)
    return result[tuple(slice(b, b + n) for b, n in zip(before, space, strict=True))]


def _windows(
    image: np.ndarray, predict: Predict, sides: list[list[int]], window: tuple[int, ...], size: int
) -> Iterator[tuple[tuple[int, ...], np.ndarray]]:
    """Yield (position, scores) of every window, in the order of their positions."""
    places = list(itertools.product(*sides))
    for number in range(0, len(places), size):
        chosen = places[number : number + size]
        cut = [image[tuple(slice(p, p + w) for p, w in zip(corner, window, strict=True))] for corner in chosen]
        cut += cut[-1:] * (size - len(cut))
        predictions = np.asarray(predict(np.stack(cut)), np.float32)
        yield from zip(chosen, predictions, strict=False)
