"""Store the images of a run in device memory, or stream them from disk, with the same order and pixels.

Both stores provide two inputs of the jitted step: `arrays`, which stay on the devices, and a batch,
which is transferred at every step. `gather(arrays, batch)`, traced inside the step, builds the examples.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from deblur_mae_jax import sharding
from deblur_mae_jax.data.loader import Cubes, Loader, put, stream
from deblur_mae_jax.data.order import InOrder, Order
from deblur_mae_jax.errors import UserError, unknown

STORES = ("auto", "resident", "streaming")
# Share of the free memory that the resident store may take when it is chosen automatically.
RESIDENT_SHARE = {"cpu": 0.25, "accelerator": 0.4}
CHUNK = 64

Precompute = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Resident:
    """The whole decoded set in device memory, divided among the devices by images.

    Only the image indices of a batch are transferred at each step.
    """

    name = "resident"

    def __init__(
        self,
        loader: Loader,
        order: Order | InOrder,
        mesh: Mesh,
        accum_steps: int,
        *,
        precompute: Precompute | None = None,
        num_threads: int = 4,
    ):
        self.order, self.mesh, self.accum_steps = order, mesh, accum_steps
        count = len(loader)
        padded = -(-count // mesh.size) * mesh.size
        canvas = loader.index.canvas
        shapes = {"image": (padded, *canvas, loader.channels), "size": (padded, len(canvas))}
        if precompute is not None:
            shapes["degraded"] = (padded, *canvas, 1)
        if loader.classes is not None:
            shapes["mask"] = (padded, *canvas)
        shapes |= {name: (padded, *values.shape[1:]) for name, values in loader.extras.items()}
        types: dict[str, Any] = {"size": np.int32, "degraded": np.uint8, "mask": np.uint8}
        types["image"] = loader.index.source.dtype
        types |= {name: values.dtype for name, values in loader.extras.items()}
        cache: dict[tuple[int, int], dict[str, np.ndarray]] = {}

        def read(first: int, last: int) -> dict[str, np.ndarray]:
            if (first, last) in cache:
                return cache[first, last]
            arrays = {name: np.zeros((last - first, *shape[1:]), types[name]) for name, shape in shapes.items()}
            arrays["size"][:] = 1  # rows of padding are never drawn, but must not divide by zero

            def one(number: int) -> None:
                row, image, mask = loader.read(number)
                put(arrays["image"][number - first], image)
                if mask is not None:
                    put(arrays["mask"][number - first], mask)
                arrays["size"][number - first] = image.shape[:-1]
                for name, values in loader.extras.items():
                    arrays[name][number - first] = values[row]

            with ThreadPoolExecutor(max(1, num_threads)) as pool:
                list(pool.map(one, range(first, min(last, count))))
            if precompute is not None:
                for start in range(0, last - first, CHUNK):
                    chunk = slice(start, start + CHUNK)
                    arrays["degraded"][chunk] = precompute(arrays["image"][chunk], arrays["size"][chunk])
            cache[first, last] = arrays
            return arrays

        def array(name: str) -> jax.Array:
            shape = shapes[name]

            def shard(index):
                first, last, _ = index[0].indices(padded)
                return read(first, last)[name]

            return jax.make_array_from_callback(shape, sharding.along(mesh), shard)

        self.arrays = {name: array(name) for name in shapes}

    @staticmethod
    def gather(arrays, batch):
        """Image numbers `(B,)` -> examples."""
        return {name: value.at[batch["number"]].get(mode="promise_in_bounds") for name, value in arrays.items()}

    def batches(self, start_step: int, num_steps: int) -> Iterator[dict[str, jax.Array]]:
        """Device batches for `num_steps` training steps from `start_step`."""
        rows = sharding.local_rows(self.order.batch_size, self.accum_steps)
        for step in range(start_step, start_step + num_steps):
            numbers = self.order.batch(step)[rows]
            yield sharding.put_batch(self.mesh, {"number": numbers}, self.accum_steps)

    def in_order(self, order: InOrder) -> Iterator[dict[str, jax.Array]]:
        """Device batches `(1, B, ...)` that hold each image of `order` once."""
        rows = sharding.local_rows(order.batch_size, 1)
        for step in range(order.num_batches):
            yield sharding.put_batch(self.mesh, {"number": order.batch(step)[rows]}, 1)


class Streaming:
    """Images that the host reads ahead and transfers batch by batch, for sets too large for device memory."""

    name = "streaming"

    def __init__(
        self,
        loader: Loader,
        order: Order | InOrder,
        mesh: Mesh,
        accum_steps: int,
        *,
        precompute: Precompute | None = None,
        num_threads: int = 4,
        num_workers: int = 0,
        cubes: Cubes | None = None,
    ):
        self.loader, self.order, self.mesh, self.cubes = loader, order, mesh, cubes
        self.accum_steps, self.precompute = accum_steps, precompute
        self.num_threads, self.num_workers = num_threads, num_workers
        self.arrays: dict[str, jax.Array] = {}

    @staticmethod
    def gather(arrays, batch):
        """The batch is the examples."""
        return batch

    def batches(self, start_step: int, num_steps: int) -> Iterator[dict[str, jax.Array]]:
        """Device batches for `num_steps` training steps from `start_step`."""
        return self._stream(self.order, start_step, num_steps, self.accum_steps, self.cubes)

    def in_order(self, order: InOrder) -> Iterator[dict[str, jax.Array]]:
        """Device batches `(1, B, ...)` that hold each image of `order` once.

        They are read by threads: the loader of another process could not tell which images it replaced.
        """
        return self._stream(order, 0, order.num_batches, 1, workers=0)

    def _stream(
        self,
        order: Order | InOrder,
        start_step: int,
        num_steps: int,
        accum_steps: int,
        cubes: Cubes | None = None,
        workers: int | None = None,
    ) -> Iterator[dict[str, jax.Array]]:
        for local in stream(
            self.loader,
            order,
            start_step=start_step,
            num_steps=start_step + num_steps,
            rows=sharding.local_rows(order.batch_size, accum_steps),
            num_threads=self.num_threads,
            num_workers=self.num_workers if workers is None else workers,
            cubes=cubes,
        ):
            if self.precompute is not None:
                local = {**local, "degraded": self.precompute(local["image"], local["size"])}
            yield sharding.put_batch(self.mesh, local, accum_steps)


def resident_bytes(loader: Loader, with_degraded: bool) -> int:
    """Bytes of the whole set on its canvas."""
    voxels = int(np.prod(loader.index.canvas))
    itemsize = np.dtype(loader.index.source.dtype).itemsize
    beside = int(with_degraded) + (loader.classes is not None)
    return len(loader) * voxels * (loader.channels * itemsize + beside)


def _budget(mesh: Mesh) -> int:
    """Bytes that a resident set may take: the same for all processes, so that they choose the same store."""
    device = jax.local_devices()[0]  # only those of this process tell their memory
    if device.platform == "cpu":
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        own = RESIDENT_SHARE["cpu"] * total
    else:
        stats = device.memory_stats() or {}
        own = RESIDENT_SHARE["accelerator"] * stats.get("bytes_limit", 8 << 30) * mesh.size
    return int(sharding.smallest_of_processes(own))


def on_host(precompute: Callable[[jax.Array, jax.Array], jax.Array]) -> Precompute:
    """`precompute` for any number of images, in chunks of one shape."""
    jitted = jax.jit(precompute)

    def computed(images: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        # Always the same shape, so that it compiles once: the last chunk is padded.
        batches = []
        for start in range(0, len(images), CHUNK):
            chunk, size = images[start : start + CHUNK], sizes[start : start + CHUNK]
            missing = CHUNK - len(chunk)
            chunk = np.pad(chunk, ((0, missing), (0, 0), (0, 0), (0, 0)))
            size = np.pad(size, ((0, missing), (0, 0)), constant_values=1)
            degraded = jitted(jnp.asarray(chunk), jnp.asarray(size))
            batches.append(np.asarray(degraded)[: CHUNK - missing])
        return np.concatenate(batches)

    return computed


def make(
    kind: str,
    loader: Loader,
    order: Order,
    mesh: Mesh,
    accum_steps: int,
    *,
    precompute: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    num_threads: int = 4,
    num_workers: int = 0,
    cubes: Cubes | None = None,
) -> Resident | Streaming:
    """The store `config.data.store` asks for; "auto" is resident when the set fits.

    cubes: the cubes of a run whose places do not depend on the voxels. Streaming reads and transfers these alone;
        worker processes (`num_workers` above 0) read whole volumes.
    """
    if kind not in STORES:
        raise unknown("config.data.store", kind, STORES)
    need, budget = resident_bytes(loader, precompute is not None), _budget(mesh)
    if kind == "auto":
        kind = "resident" if need <= budget else "streaming"
    if kind == "resident" and need > 2 * budget:
        raise UserError(
            f"config.data.store=resident: the images need {need / 2**30:.1f} GiB on their canvas of "
            f"{loader.index.canvas}, too much here; use streaming or a smaller config.data.max_side"
        )
    logging.info("%s store, %d images, %.2f GiB", kind, len(loader), need / 2**30)
    host_precompute = None if precompute is None else on_host(precompute)
    if kind == "resident":
        return Resident(loader, order, mesh, accum_steps, precompute=host_precompute, num_threads=num_threads)
    return Streaming(
        loader,
        order,
        mesh,
        accum_steps,
        precompute=host_precompute,
        num_threads=num_threads,
        num_workers=num_workers,
        cubes=None if num_workers else cubes,
    )
