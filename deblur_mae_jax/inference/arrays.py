"""Arrays of a user: images are checked and padded to one canvas, and logits become probabilities."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from scipy.special import softmax

from deblur_mae_jax.data import decode
from deblur_mae_jax.errors import UserError, one_line

# Scaled voxels are within a few standard deviations of 0. Hounsfield units and raw MR are not.
UNSCALED = 200.0
SCALED = (
    "scale it as in training (CT: the window mapped to 0..1; MR: standardised over the non-zero voxels), or let "
    "main.py --mode=predict read the files"
)
ROUNDING = 1e-4  # by which values of a float image may exceed 0..1


def as_list(images: Any) -> list[np.ndarray]:
    """Check images and return each as `(H, W, C)`, uint8 or float32 gray levels 0..255. Raises `UserError`.

    images: an array `(N, H, W)`, `(N, H, W, 1)` or `(N, H, W, 3)`, a single image without the axis N, or an iterable
        of images of different sizes; uint8, or float between 0 and 1.
    """
    if isinstance(images, (str, os.PathLike, dict)):
        raise UserError(
            f"images: a {type(images).__name__} is no image; expected an array, a picture of Pillow or a list of them. "
            "main.py --mode=predict reads files"
        )
    is_array = hasattr(images, "__array__") or hasattr(images, "__array_interface__")
    if not is_array and not isinstance(images, (list, tuple)):  # a generator, or another collection
        try:
            images = list(images)
        except TypeError as error:
            raise UserError(
                f"images: {type(images).__name__} is neither an array nor a collection of images"
            ) from error
    if not isinstance(images, (list, tuple)):
        array = _numbers(images)
        if array.ndim < 2:
            raise UserError(f"images: an array of shape {array.shape} is no image; expected (H, W) or (N, H, W)")
        if array.ndim == 3 and array.shape[-1] in (2, 4) and array.shape[0] > 4:
            raise UserError(
                f"images: an array of shape {array.shape} looks like one image with {array.shape[-1]} channels; "
                "expected (N, H, W), (H, W), (H, W, 1) or (H, W, 3)"
            )
        single = array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3) and array.shape[0] > 3)
        images = [array] if single else list(array)
    out = []
    for number, image in enumerate(images):
        if isinstance(image, (str, os.PathLike)):
            raise UserError(
                f"images: image {number} is the path '{image}'; expected an array. main.py --mode=predict reads files"
            )
        image = _numbers(image, number)
        image = image[:, :, None] if image.ndim == 2 else image
        if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
            raise UserError(f"images: image {number} has shape {image.shape}; expected (H, W), (H, W, 1) or (H, W, 3)")
        if image.dtype == bool or not (image.dtype == np.uint8 or np.issubdtype(image.dtype, np.floating)):
            raise UserError(
                f"images: image {number} is {image.dtype}; expected uint8, or float in 0..1. {_hint(image)}"
            )
        if image.dtype != np.uint8:
            low, high = float(np.min(image)), float(np.max(image))
            if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # also catches NaN
                raise UserError(
                    f"images: image {number} has values from {low:.9g} to {high:.9g}; float images must be "
                    "in 0..1, or uint8"
                )
            image = np.clip(image.astype(np.float32), 0, 1) * 255.0
        out.append(image)
    if not out:
        raise UserError("images: there are none")
    return out


def shrunk(image: np.ndarray, max_side: int) -> np.ndarray:
    """An image `(H, W, C)` with at most `max_side` pixels on its long side, as files are read; 0: as it is."""
    longest = max(image.shape[:2])
    if not max_side or longest <= max_side:
        return image
    height, width = (max(1, round(side * max_side / longest)) for side in image.shape[:2])
    planes = []
    for plane in np.moveaxis(image, -1, 0):
        for size in ((width, image.shape[0]), (width, height)):  # Pillow clips 8-bit images after each direction
            plane = Image.fromarray(np.ascontiguousarray(plane)).resize(size, Image.Resampling.LANCZOS)
            plane = np.clip(np.asarray(plane), 0, 255)
        planes.append(plane)
    return np.stack(planes, axis=-1)


def volumes_of(images: Any) -> list[np.ndarray]:
    """Check volumes and return each as float32 `(D, H, W)`. Raises `UserError`.

    images: a volume `(D, H, W)` or `(D, H, W, 1)`, or a list of them; scaled as in training. An array
        `(N, D, H, W)` is N volumes, but one whose last side is 1 is one volume.
    """
    if hasattr(images, "__array__") and (np.ndim(images) == 3 or (np.ndim(images) == 4 and np.shape(images)[3] == 1)):
        images = [images]
    elif isinstance(images, (str, os.PathLike)) or not hasattr(images, "__iter__"):
        raise UserError(f"images: {type(images).__name__} is neither a volume nor a collection of volumes")
    out = []
    for number, given in enumerate(images):
        if not hasattr(given, "__array__"):
            raise UserError(f"images: volume {number} is a {type(given).__name__}; expected an array (D, H, W)")
        volume = np.asarray(given)
        if not np.issubdtype(volume.dtype, np.floating):
            raise UserError(f"images: volume {number} is {volume.dtype}; {SCALED}")
        volume = volume[..., 0] if volume.ndim == 4 and volume.shape[3] == 1 else volume
        if volume.ndim != 3 or 0 in volume.shape or not np.isfinite(volume).all():
            raise UserError(f"images: volume {number} of shape {volume.shape} must be finite and have 3 axes")
        if np.abs(volume).max() > UNSCALED:
            raise UserError(f"images: volume {number} holds values from {volume.min():g} to {volume.max():g}; {SCALED}")
        out.append(volume.astype(np.float32))
    if not out:
        raise UserError("images: there are none")
    return out


STRETCH = (
    "A run stretches deep images to their own range (config.data.bits16=minmax): (x - x.min()) / (x.max() - x.min())"
)


def _hint(image: np.ndarray) -> str:
    """What to do with whole numbers that are not uint8."""
    wide = image.dtype.kind in "iu" and image.dtype.itemsize > 2  # NumPy's own, not that of a deep image
    if image.dtype == bool or (wide and image.min() >= 0 and image.max() <= 255):
        return "Black and white: image.astype(float). Gray levels from 0 to 255: image.astype(np.uint8)"
    return STRETCH


def _numbers(image: Any, number: int = 0) -> np.ndarray:
    """An image as an array. A picture of Pillow is turned and put on black, as a run reads its file.

    Raises `UserError` for a picture whose numbers are not gray levels or RGB, such as a palette's, and for a tensor
    that cannot be an array.
    """
    if isinstance(image, Image.Image):
        deep = image.mode in ("I", "F") or image.mode.startswith("I;16")
        if deep:
            raise UserError(
                f"images: image {number} has Pillow's mode {image.mode}, which 'L' would cut off at 255; pass "
                f"x = np.asarray(image, float), stretched. {STRETCH}"
            )
        if image.mode not in ("L", "RGB"):
            raise UserError(f"images: image {number} has Pillow's mode {image.mode}; convert it to 'L' or 'RGB' first")
        image = decode.on_black(ImageOps.exif_transpose(image), []).convert(image.mode)
    try:
        return np.asarray(image)
    except Exception as error:  # of another library, such as a tensor on a GPU
        raise UserError(
            f"images: image {number}, a {type(image).__name__}, cannot be an array ({one_line(error)}); for a tensor "
            "of PyTorch: image.detach().cpu().numpy()"
        ) from error


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
