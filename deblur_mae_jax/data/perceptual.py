"""Perceptual hashes: numbers that are close for images that look alike."""

from __future__ import annotations

import imagehash
import numpy as np
from PIL import Image


def perceptual_hash(pixels: np.ndarray, side: int) -> np.ndarray:
    """pHash of one image `(H, W, C)`, `(side ** 2,)` bits."""
    gray = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    return imagehash.phash(Image.fromarray(gray), hash_size=side).hash.reshape(-1)
