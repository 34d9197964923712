"""Signs of a useful or a collapsed representation, from the features of some images."""

from __future__ import annotations

import numpy as np

# A network whose features have a smaller spread gives all images nearly the same features.
COLLAPSED = 0.05


def spread(features: np.ndarray) -> float:
    """Standard deviation of the normalised features over the images, times the root of their number (Chen and He 2021).

    features: `(N, D)`. About 1 for features in all directions, 0 for collapsed ones.
    """
    unit = _unit(features)
    return float(unit.std(axis=0).mean() * np.sqrt(unit.shape[1]))


def effective_rank(features: np.ndarray) -> float:
    """RankMe (Garrido et al. 2023): the exponential of the entropy of the singular values of the features.

    features: `(N, D)`. The result is between 1 and min(N, D).
    """
    values = np.linalg.svd(np.asarray(features, np.float64), compute_uv=False)
    share = values / max(float(values.sum()), 1e-12) + 1e-7
    return float(np.exp(-(share * np.log(share)).sum()))


def uniformity(features: np.ndarray) -> float:
    """Uniformity on the sphere (Wang and Isola 2020): log of the mean of exp(-2 d^2) over pairs of images.

    features: `(N, D)`. 0 for collapsed features; about -4 for uniform ones with many dimensions.
    """
    unit = _unit(features)
    first, second = np.triu_indices(len(unit), 1)
    distance = 2.0 - 2.0 * np.clip((unit @ unit.T)[first, second], -1.0, 1.0)
    return float(np.log(np.exp(-2.0 * distance).mean())) if len(distance) else 0.0


def measures(features: np.ndarray) -> dict[str, float]:
    """All of these by name."""
    return {
        "feature_spread": spread(features),
        "effective_rank": effective_rank(features),
        "uniformity": uniformity(features),
    }


def warning(measures: dict[str, float]) -> str:
    """One line if the features have collapsed, else ""."""
    found = measures.get("feature_spread")
    if found is None or found >= COLLAPSED:
        return ""
    return (
        f"the features of different images are nearly equal (spread {found:.3f}; collapsed below {COLLAPSED}): the "
        "network may have collapsed. Try a smaller learning rate or a larger batch"
    )


def _unit(features: np.ndarray) -> np.ndarray:
    x = np.asarray(features, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
