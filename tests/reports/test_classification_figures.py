"""Curves of a classification report against scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics

from deblur_mae_jax.reports import classification_figures as figures


def of_scikit_learn(labels, p, kind):
    """One curve, from scikit-learn's functions."""
    rows = []
    for c in [1] if p.shape[1] == 2 else np.unique(labels):
        truth = labels == c
        if truth.all() or not truth.any():
            continue
        if kind == "roc":
            x, y, _ = metrics.roc_curve(truth, p[:, c])
        else:
            y, x, _ = (one[::-1] for one in metrics.precision_recall_curve(truth, p[:, c]))
        row = np.interp(figures.GRID, x, y)
        rows.append(np.r_[0.0, row[1:]] if kind == "roc" else row)
    return np.mean(rows, axis=0) if rows else np.full(len(figures.GRID), np.nan)


@pytest.mark.parametrize("kind", ["roc", "pr"])
@settings(max_examples=60, deadline=None)
@given(classes=st.integers(2, 4), count=st.integers(2, 30), levels=st.integers(1, 40), seed=st.integers(0, 10_000))
def test_weighted_curves_are_those_of_repeated_images(kind, classes, count, levels, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    p = rng.integers(0, levels, (count, classes)) / levels  # with ties
    weights = rng.integers(0, 3, (3, count))
    got = figures.curves_of(labels, p, kind, weights)
    for row, times in zip(got, weights, strict=True):
        again = np.repeat(np.arange(count), times)
        np.testing.assert_allclose(row, of_scikit_learn(labels[again], p[again], kind), atol=1e-12)
