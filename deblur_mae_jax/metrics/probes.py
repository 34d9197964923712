"""Classifiers of frozen features: nearest neighbours and logistic regression (scikit-learn)."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler


def nearest(neighbours: int) -> Any:
    """Nearest neighbours by the cosine, weighted by distance."""
    # After normalisation, Euclidean and cosine neighbours are the same.
    return make_pipeline(Normalizer(), KNeighborsClassifier(neighbours, weights="distance"))


def linear(strength: float, balanced: bool = False) -> Any:
    """Logistic regression of standardised features.

    strength: scikit-learn's C, the inverse of the regularisation.
    balanced: weight the classes by the inverse of their number.
    """
    weights = "balanced" if balanced else None
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000, class_weight=weights))


def probabilities(model: Any, x: np.ndarray, num_classes: int) -> np.ndarray:
    """Probabilities `(N, num_classes)` of a fitted classifier; zero for classes without training images."""
    out = np.zeros((len(x), num_classes))
    out[:, model.classes_] = model.predict_proba(x)
    return out
