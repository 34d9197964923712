"""Arrays of a user: images are checked and padded to one canvas, and logits become probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from scipy.special import softmax

from deblur_mae_jax.errors import UserError


def as_list(images: Any) -> list[np.ndarray]:
    """Check images and return each as `(H, W, C)`, uint8 or float32 gray levels 0..255. Raises `UserError`.

    images: an array `(N, H, W)`, `(N, H, W, 1)` or `(N, H, W, 3)`, a single image without the axis N, or an iterable
        of images of different sizes; uint8, or float between 0 and 1.
    """
    is_array = hasattr(images, "__array__") or hasattr(images, "__array_interface__")
    if not is_array and not isinstance(images, (list, tuple)):  # a generator, or another collection
        try:
            images = list(images)
        except TypeError as error:
            raise UserError(
                f"images: {type(images).__name__} is neither an array nor a collection of images"
            ) from error
    if not isinstance(images, (list, tuple)):
        _need_gray_or_rgb(images)
        array = np.asarray(images)
        if array.ndim == 3 and array.shape[-1] in (2, 4) and array.shape[0] > 4:
            raise UserError(
                f"images: an array of shape {array.shape} looks like one image with {array.shape[-1]} channels; "
                "expected (N, H, W), (H, W), (H, W, 1) or (H, W, 3)"
            )
        single = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3) and array.shape[0] > 3)
        images = [array] if single else list(array)
    out = []
    for number, image in enumerate(images):
        _need_gray_or_rgb(image, number)
        image = np.asarray(image)
        image = image[:, :, None] if image.ndim == 2 else image
        if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
            raise UserError(f"images: image {number} has shape {image.shape}; expected (H, W), (H, W, 1) or (H, W, 3)")
        if image.dtype == bool or not (image.dtype == np.uint8 or np.issubdtype(image.dtype, np.floating)):
            raise UserError(f"images: image {number} is {image.dtype}; expected uint8, or float in 0..1")
        if image.dtype != np.uint8:
            low, high = float(np.min(image)), float(np.max(image))
            if not (low >= 0 and high <= 1):  # also catches NaN
                raise UserError(
                    f"images: image {number} has values from {low:g} to {high:g}; float images must be "
                    "in 0..1, or uint8"
                )
            image = image.astype(np.float32) * 255.0
        out.append(image)
    if not out:
        raise UserError("images: there are none")
    return out


def _need_gray_or_rgb(image: Any, number: int = 0) -> None:
    """Raise `UserError` for a picture of Pillow whose numbers are not gray levels or RGB, such as a palette's."""
    if isinstance(image, Image.Image) and image.mode not in ("L", "RGB"):
        raise UserError(f"images: image {number} has Pillow's mode {image.mode}; convert it to 'L' or 'RGB' first")


def _channels(image: np.ndarray, channels: int) -> np.ndarray:
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    if image.dtype == np.uint8:  # in the same way as the images of a run are read
        return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
    return image @ np.array([[0.299], [0.587], [0.114]], np.float32)


def batches(
    ready: list[np.ndarray], channels: int, batch: int, canvas: tuple[int, ...] | None = None
) -> Iterator[tuple[int, int, dict[str, np.ndarray]]]:
    """Yield (number of the first image, number of real images, examples) for batches of `batch` images on one canvas.

    The last batch is padded.

    ready: images from `as_list`.
    canvas: height and width of the canvas; `None`: of the largest image.
    """
    ready = [_channels(image, channels) for image in ready]
    height, width = (max(0 if canvas is None else canvas[i], *(image.shape[i] for image in ready)) for i in range(2))
    kind = np.uint8 if all(image.dtype == np.uint8 for image in ready) else np.float32
    batch = min(batch, len(ready))
    for start in range(0, len(ready), batch):
        images = ready[start : start + batch]
        stack = np.zeros((batch, height, width, channels), kind)
        sizes = np.ones((batch, 2), np.int32)
        for i in range(batch):
            image = images[min(i, len(images) - 1)]
            stack[i, : image.shape[0], : image.shape[1]] = image
            sizes[i] = image.shape[:2]
        yield start, len(images), {"image": stack, "size": sizes}


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    """Softmax in float64 `(N, C)`."""
    return softmax(logits.astype(np.float64), axis=-1)
