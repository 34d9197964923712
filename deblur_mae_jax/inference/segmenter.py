"""Segment whole images: volumes with a sliding window, 2-D images in one view."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from deblur_mae_jax import sharding
from deblur_mae_jax.data.loader import Loader
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.inference import sliding_window
from deblur_mae_jax.input_pipeline.keys import evaluation_keys
from deblur_mae_jax.metrics import segmentation
from deblur_mae_jax.network import Network


def flips_of(axes: int, wanted: bool) -> list[tuple[int, ...]]:
    """The axes to flip for each averaged view: every subset of axes in 3-D, only left to right in 2-D."""
    if not wanted:
        return [()]
    if axes == 2:
        return [(), (2,)]
    chosen = itertools.chain(*(itertools.combinations((1, 2, 3), n) for n in range(4)))
    return list(chosen)


class Segmenter:
    """Segments images with one set of weights, or with the mean over several (an ensemble).

    With several views or members it averages probabilities, else it blends logits.

    infer: `config.infer`.
    """

    def __init__(self, network: Network, mesh: jax.sharding.Mesh, infer: ConfigDict):
        sliding_window.check(infer.overlap, infer.blending)
        if infer.batch_size < 1:
            raise UserError(f"config.infer.batch_size={infer.batch_size} must be at least 1")
        self.network, self.mesh, self.infer = network, mesh, infer
        self.is_3d = network.axes == 3
        self.flips = flips_of(network.axes, infer.flips)
        # Every device has the same number of windows.
        self.batch_size = -(-infer.batch_size // mesh.size) * mesh.size
        model = network.model

        def scores(params, images, level, normalised):
            logits, _ = model.apply({"params": params}, images, level=level)
            return jax.nn.softmax(logits) if normalised else logits

        everywhere = sharding.replicated(mesh)
        self._scores = jax.jit(scores, static_argnames="normalised", out_shardings=everywhere)

        def view(examples):
            # The same draw for every image: its input does not depend on its place in a batch.
            keys = evaluation_keys(jnp.zeros(examples["size"].shape[0], int))
            data = network.inputs.whole(examples, keys)
            return data["inputs"], data.get("level")

        if not self.is_3d:
            self._view = jax.jit(view)
            self._precompute = jax.jit(network.inputs.precompute)

    def _put(self, array: Any) -> jax.Array:
        """Split an array over the devices along its first axis; every process must hold the whole array."""
        array = np.asarray(array)
        where = sharding.along(self.mesh)
        return jax.make_array_from_callback(array.shape, where, lambda index: array[index])

    def _mean(self, members: list[Any], images: np.ndarray, level: Any = None) -> np.ndarray:
        """Logits or mean probabilities `(B, *space, K)` of a batch."""
        normalised = len(members) * len(self.flips) > 1
        total: Any = 0.0
        for axes in self.flips:
            data = self._put(np.flip(images, axes))
            given = None if level is None else self._put(level)
            for params in members:
                scores = np.asarray(self._scores(params, data, given, normalised=normalised))
                total = total + np.flip(scores, axes)
        return total / (len(members) * len(self.flips))

    def of_volume(self, members: list[Any], volume: np.ndarray) -> np.ndarray:
        """Segment a volume `(D, H, W, C)`, scaled as by `Source.read`. Returns uint8 classes `(D, H, W)`."""
        labels = sliding_window.infer(
            volume.astype(np.float32),
            lambda windows: self._mean(members, windows),
            self.network.inputs.sides,
            overlap=self.infer.overlap,
            blending=self.infer.blending,
            batch_size=self.batch_size,
            finish=lambda scores: scores.argmax(-1).astype(np.uint8),
        )
        return self._cleaned(labels)

    def of_images(self, members: list[Any], examples: list[dict[str, Any]]) -> list[np.ndarray]:
        """Segment the examples of a `Loader`. Returns uint8 classes `(H, W)` of each image at its original size."""
        count = len(examples)
        filled = examples + examples[-1:] * (self.batch_size - count)
        stacked = {k: np.stack([e[k] for e in filled]) for k in filled[0] if k != "mask"}
        if self.network.inputs.precomputes:
            stacked["degraded"] = np.asarray(self._precompute(stacked["image"], stacked["size"]))
        images, level = self._view(stacked)
        scores = self._mean(members, np.asarray(images), None if level is None else np.asarray(level))
        sizes = stacked["size"][:count]
        return [self._cleaned(_resized(s, tuple(size))) for s, size in zip(scores, sizes, strict=False)]

    def _cleaned(self, labels: np.ndarray) -> np.ndarray:
        return segmentation.largest_components(labels) if self.infer.largest_component else labels

    def each(
        self, members: list[Any], loader: Loader, indices: Any, required: bool = False
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number, classes on the grid of `Source.read`) of every readable image; report the others.

        required: raise `BadImage` at the end if half of the images or more could not be read.
        """
        waiting: list[tuple[int, dict[str, Any]]] = []
        # The processes share the work on an image.
        for number, image in loader.each(indices, sharding.on_any_process, required):
            if self.is_3d:
                yield number, self.of_volume(members, image)
                continue
            waiting.append((number, loader.placed(number, image)))
            if len(waiting) == self.batch_size:
                yield from self._images(members, waiting)
                waiting = []
        if waiting:
            yield from self._images(members, waiting)

    def _images(self, members: Any, waiting: Any) -> Iterator[tuple[int, np.ndarray]]:
        segmented = self.of_images(members, [example for _, example in waiting])
        yield from ((p, labels) for (p, _), labels in zip(waiting, segmented, strict=True))


def _resized(scores: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Interpolate scores `(h, w, K)` linearly and return the best class of every pixel `(H, W)`."""
    shape = (int(size[1]), int(size[0]))
    planes = [
        np.asarray(Image.fromarray(np.ascontiguousarray(s)).resize(shape, Image.Resampling.BILINEAR))
        for s in np.moveaxis(scores, -1, 0)
    ]
    return np.argmax(planes, axis=0).astype(np.uint8)
