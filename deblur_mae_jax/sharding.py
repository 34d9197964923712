"""The device mesh and the sharding of arrays: data parallel, with replicated parameters."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh with one axis, `data`, over all devices of all processes."""
    # Mesh(...) has Auto axes; jax.make_mesh would make them Explicit, which Flax cannot use.
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def along(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Split along one array axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def put_batch(mesh: Mesh, local: Any, accum_steps: int) -> Any:
    """Turn this process's share of a batch, `(B_local, ...)`, into global arrays `(A, B / A, ...)`.

    The global batch concatenates the shares of all processes, and each accumulation step takes the
    next B / A examples of it. Both orders are fixed, so results depend neither on the number of
    processes nor on that of accumulation steps. With several processes, each share must already be
    in the order of `local_rows`.
    """

    def put(array):
        array = np.asarray(array)
        array = array.reshape(accum_steps, array.shape[0] // accum_steps, *array.shape[1:])
        return jax.make_array_from_process_local_data(along(mesh, 1), array)

    return jax.tree.map(put, local)


def local_rows(batch_size: int, accum_steps: int) -> np.ndarray:
    """Indices `(B_local,)` of the global batch that this process provides.

    Accumulation step a covers the indices [a B/A, (a+1) B/A). Each process holds a contiguous
    share of them.
    """
    rows = np.arange(batch_size).reshape(accum_steps, jax.process_count(), -1)
    return rows[:, jax.process_index()].reshape(-1)
