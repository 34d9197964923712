"""The device mesh and where things lie on it: data parallel, parameters replicated."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def make_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """One axis, `data`, over all devices of all processes."""
    # Mesh(...) has Auto axes; jax.make_mesh would make them Explicit, which Flax cannot use.
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def along(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Split along one array axis."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXIS))


def put_batch(mesh: Mesh, local: Any, accum_steps: int) -> Any:
    """This process's share of a batch, `(B_local, ...)`, as global arrays `(A, B / A, ...)`.

    The global batch is the processes' shares one after the other, and each accumulation step takes
    the next B / A of it; both orders are needed for results that do not depend on either number.
    With several processes each share must therefore already be ordered as `local_rows` says.
    """

    def put(array):
        array = np.asarray(array)
        array = array.reshape(accum_steps, array.shape[0] // accum_steps, *array.shape[1:])
        return jax.make_array_from_process_local_data(along(mesh, 1), array)

    return jax.tree.map(put, local)


def local_rows(batch_size: int, accum_steps: int) -> np.ndarray:
    """Places in the global batch that this process provides, `(B_local,)`.

    Accumulation step a covers places [a B/A, (a+1) B/A), of which each process holds a contiguous
    share.
    """
    rows = np.arange(batch_size).reshape(accum_steps, jax.process_count(), -1)
    return rows[:, jax.process_index()].reshape(-1)
