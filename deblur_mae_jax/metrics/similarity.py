"""Similarity of the features of two networks for the same inputs: linear CKA (Kornblith et al. 2019)."""

from __future__ import annotations

import numpy as np


def linear_cka(x: np.ndarray, y: np.ndarray, unbiased: bool = False) -> float:
    """||Y'X||^2 / (||X'X|| ||Y'Y||) of features `(N, D)` and `(N, E)` of the same N inputs, columns centred.

    It is computed from the N x N Gram matrices, so D may be large.

    unbiased: use the estimator of Song et al. (2012). It is not biased towards 1 if N is small compared with D; it
        needs at least 4 rows and may be below 0.
    """
    if len(x) != len(y):
        raise ValueError(f"{len(x)} and {len(y)} rows: the features must be of the same inputs")
    if unbiased and len(x) < 4:
        raise ValueError(f"{len(x)} rows; the unbiased estimator needs at least 4")
    grams = [_gram(np.asarray(v, np.float64), unbiased) for v in (x, y)]
    product = _unbiased if unbiased else lambda a, b: float((a * b).sum())
    norm = product(grams[0], grams[0]) * product(grams[1], grams[1])
    return product(*grams) / float(np.sqrt(norm)) if norm > 0 else float("nan")


def _gram(x: np.ndarray, unbiased: bool) -> np.ndarray:
    x = x - x.mean(axis=0)
    gram = x @ x.T
    if unbiased:
        np.fill_diagonal(gram, 0.0)
    return gram


def _unbiased(a: np.ndarray, b: np.ndarray) -> float:
    """HSIC_1 of two Gram matrices with zero diagonals."""
    n = len(a)
    ones = np.ones(n)
    value = np.trace(a @ b) + (ones @ a @ ones) * (ones @ b @ ones) / ((n - 1) * (n - 2))
    value -= 2 * (ones @ a @ b @ ones) / (n - 2)
    return float(value / (n * (n - 3)))
