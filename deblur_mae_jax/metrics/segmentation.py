"""Compare two label maps by overlap and by distances between surfaces in mm (or pixels), with NumPy and SciPy.

The definitions are MONAI's. The surface of a mask is the set of voxels that an erosion by one voxel (face-connected)
removes, including voxels at the border of the image. Distances are between the centres of surface voxels. Unlike
MONAI's, a volume of one slice is measured as an image: otherwise each of its voxels would be surface.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from scipy import ndimage

from deblur_mae_jax.errors import UserError, unknown

MEASURES = {
    "dice": "Dice",
    "iou": "IoU",
    "hd": "Hausdorff distance",
    "hd95": "95 % Hausdorff distance",
    "surface_distance": "mean surface distance",
    "surface_dice": "surface Dice",
}
HIGHER_IS_BETTER = {name: name in ("dice", "iou", "surface_dice") for name in MEASURES}
LENGTHS = ("hd", "hd95", "surface_distance")
# How a label is scored in a case in which the truth, the prediction or both lack it.
EMPTY = ("skip", "count")


def dice(truth: np.ndarray, predicted: np.ndarray, empty: str = "skip") -> float:
    """Dice coefficient 2 |A B| / (|A| + |B|) of two masks.

    empty: "skip" gives NaN if the truth is empty, which is MONAI's default. "count" gives 1 if both masks are empty
        and 0 if only the truth is empty. A missed label has 0 with both settings.
    """
    if not truth.any() and empty == "skip":
        return float("nan")
    size = int(truth.sum()) + int(predicted.sum())
    return 2.0 * int((truth & predicted).sum()) / size if size else 1.0


Number = TypeVar("Number", float, np.ndarray)


def iou_of(dice: Number) -> Number:
    """IoU (Jaccard index) |A B| / |A or B| of two masks with this Dice coefficient."""
    return dice / (2.0 - dice)


def surface(mask: np.ndarray) -> np.ndarray:
    """The voxels of a mask that have a neighbour outside the mask."""
    return mask & ~ndimage.binary_erosion(mask)


def surface_distances(
    truth: np.ndarray, predicted: np.ndarray, spacing: tuple[float, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances from the prediction's surface voxels to the truth's surface and the reverse; neither may be empty."""
    both = ndimage.find_objects((truth | predicted).astype(np.uint8))[0]  # nothing outside this box matters
    a, b = surface(truth[both]), surface(predicted[both])
    to_truth = ndimage.distance_transform_edt(~a, sampling=spacing)
    to_predicted = ndimage.distance_transform_edt(~b, sampling=spacing)
    return to_truth[b], to_predicted[a]


def measure(
    truth: np.ndarray,
    predicted: np.ndarray,
    spacing: tuple[float, ...],
    tolerance: float = 1.0,
    empty: str = "skip",
    shape: tuple[int, ...] | None = None,
) -> dict[str, float]:
    """Compute every measure of two boolean masks.

    The 95 % Hausdorff distance is the larger of the two directed 95th percentiles. The mean surface distance averages
    over the voxels of both surfaces together.

    spacing: voxel spacing per axis, in mm (or pixels).
    tolerance: distance in the same unit up to which surfaces count as equal (surface Dice).
    empty: if a mask is empty, distances are undefined. "skip" gives NaN. "count" gives the diagonal of the image, the
        worst possible distance; if both masks are empty it gives distance 0 and surface Dice 1. The surface Dice of a
        missed label is 0 with both settings, as its Dice is.
    shape: that of the whole image, if the masks are cut out of it; nothing outside them may belong to either.
    """
    if empty not in EMPTY:
        raise unknown("config.report.empty", empty, EMPTY)
    overlap = dice(truth, predicted, empty)
    out = {"dice": overlap, "iou": iou_of(overlap)}
    whole = truth.shape if shape is None else shape
    if truth.any() and predicted.any():
        thick = [axis for axis, side in enumerate(whole) if side > 1] or [0]
        flat = tuple(axis for axis in range(truth.ndim) if axis not in thick)
        forth, back = surface_distances(truth.squeeze(flat), predicted.squeeze(flat), tuple(spacing[a] for a in thick))
        joined = np.concatenate([forth, back])
        out["hd"] = float(joined.max())
        out["hd95"] = float(max(np.percentile(forth, 95), np.percentile(back, 95)))
        out["surface_distance"] = float(joined.mean())
        out["surface_dice"] = float((joined <= tolerance).mean())
        return out
    worst, same = float("nan"), 0.0 if truth.any() else float("nan")
    if empty == "count":
        both_empty = not truth.any() and not predicted.any()
        extent = np.array(whole) * np.array(spacing)
        worst, same = (0.0, 1.0) if both_empty else (float(np.linalg.norm(extent)), 0.0)
    return out | {"hd": worst, "hd95": worst, "surface_distance": worst, "surface_dice": same}


def measure_labels(
    truth: np.ndarray,
    predicted: np.ndarray,
    num_labels: int,
    spacing: tuple[float, ...],
    tolerance: float = 1.0,
    empty: str = "skip",
) -> dict[str, np.ndarray]:
    """Compute every measure, each `(num_labels,)`, for labels 1 to `num_labels` of two label maps."""
    rows = []
    for label, *found in zip(
        range(1, num_labels + 1),
        ndimage.find_objects(truth, num_labels),
        ndimage.find_objects(predicted, num_labels),
        strict=True,
    ):
        box = _union([one for one in found if one is not None], truth.ndim)  # nothing outside it matters
        rows.append(measure(truth[box] == label, predicted[box] == label, spacing, tolerance, empty, truth.shape))
    return {name: np.array([row[name] for row in rows]) for name in MEASURES}


def _union(boxes: list[tuple[slice, ...]], axes: int) -> tuple[slice, ...]:
    """The smallest box that contains all of the boxes; an empty one if there are none."""
    if not boxes:
        return (slice(0, 0),) * axes
    return tuple(slice(min(s.start for s in sides), max(s.stop for s in sides)) for sides in zip(*boxes, strict=True))


def largest_components(labels: np.ndarray) -> np.ndarray:
    """Keep only the largest connected component (face-connected) of every label."""
    out = np.zeros_like(labels)
    for label in range(1, int(labels.max()) + 1):
        components, count = ndimage.label(labels == label)
        if count:
            sizes = np.bincount(components.ravel())
            sizes[0] = 0
            out[components == sizes.argmax()] = label
    return out


def check(tolerance: float, empty: str) -> None:
    """Raise `UserError` for invalid settings."""
    if empty not in EMPTY:
        raise unknown("config.report.empty", empty, EMPTY)
    if not 0 <= tolerance < np.inf:
        raise UserError(f"config.report.tolerance={tolerance} must be 0 or greater")
