"""The order of the images. It depends on (seed, index) alone."""

from __future__ import annotations

import numpy as np


class Order:
    """An endless sequence of image indices, reshuffled every epoch.

    Element p of the sequence is example `p % batch_size` of step `p // batch_size`. The incomplete
    last batch of an epoch is dropped, as in the papers' code. A set smaller than a batch is repeated
    within the batch instead.

    num_images: number of images in the sequence.
    batch_size: images per step.
    seed: seed of the shuffling.
    indices: indices of the images `(num_images,)`. Default: 0..num_images - 1.
    labels: label of each image `(num_images,)`. If given, an epoch is num_images draws with
        replacement, with all classes equally likely.
    shares: relative frequency of each label, instead of equal frequencies.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        indices: np.ndarray | None = None,
        labels: np.ndarray | None = None,
        shares: dict[str, float] | None = None,
    ):
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.indices = np.arange(num_images) if indices is None else np.asarray(indices)
        self.chances: np.ndarray | None = None
        if labels is not None:
            names, which, counts = np.unique(labels, return_inverse=True, return_counts=True)
            share = np.array([1.0 if shares is None else shares[str(name)] for name in names])
            self.chances = (share / share.sum() / counts)[which]
        drop = num_images % batch_size if num_images >= batch_size else 0
        self.epoch_length = num_images - drop
        self._cached: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    @property
    def steps_per_epoch(self) -> float:
        """Steps in an epoch, without the dropped batch. It is below 1 for a set smaller than a batch."""
        return self.epoch_length / self.batch_size

    def _permutation(self, epoch: int) -> np.ndarray:
        cached = self._cached  # read once: several threads may reach the end of an epoch together
        if cached[0] != epoch:
            generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
            if self.chances is None:
                drawn = generator.permutation(self.num_images)
            else:
                drawn = generator.choice(self.num_images, self.num_images, p=self.chances)
            cached = self._cached = (epoch, self.indices[drawn])
        return cached[1]

    def __call__(self, index: int) -> int:
        """The image at one index."""
        epoch, within = divmod(index, self.epoch_length)
        return int(self._permutation(epoch)[within])

    def batch(self, step: int) -> np.ndarray:
        """Image numbers `(batch_size,)` of a step."""
        start = step * self.batch_size
        return np.array([self(p) for p in range(start, start + self.batch_size)], np.int32)


class InOrder:
    """The given images in order, each once. The last batch is padded by repeating the last image."""

    def __init__(self, indices: np.ndarray, batch_size: int):
        self.indices, self.batch_size = np.asarray(indices), batch_size

    @property
    def num_batches(self) -> int:
        """Number of batches that cover every image."""
        return -(-len(self.indices) // self.batch_size)

    def __call__(self, index: int) -> int:
        """The image at one index."""
        return int(self.indices[min(index, len(self.indices) - 1)])

    def batch(self, step: int) -> np.ndarray:
        """Image numbers `(batch_size,)` of a step."""
        start = step * self.batch_size
        return np.array([self(p) for p in range(start, start + self.batch_size)], np.int32)
