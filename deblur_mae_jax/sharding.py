"""The device mesh, the sharding of arrays, and what processes tell each other.

Batches are divided among all devices, parameters if asked for.

The mesh has two axes. Every group along `fsdp` holds the parameters and the state of the optimiser once, divided among
its devices; along `replica` the groups are copies of each other (`config.sharding`). This is ZeRO (Rajbhandari et al.,
2020): stage 1 with `zero1`, stage 3 with `fsdp`. The compiler inserts the exchange.
"""

from __future__ import annotations

import dataclasses
import json
import math
import zlib
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from deblur_mae_jax.errors import UserError, unknown

AXES = ("replica", "fsdp")
MODES = ("replicate", "zero1", "fsdp")


def make_mesh(devices: list[jax.Device] | None = None, replica: int = 1) -> Mesh:
    """A mesh `(replica, fsdp)` over all devices of all processes.

    replica: number of copies of the parameters, if they are divided. Raises `UserError` if it does not divide the
        number of devices.
    """
    every = np.array(jax.devices() if devices is None else devices)
    if replica < 1 or every.size % replica:
        raise UserError(f"config.sharding.replica={replica} must divide the number of devices, {every.size}")
    # Mesh(...) has Auto axes; jax.make_mesh would make them Explicit, which Flax cannot use.
    return Mesh(every.reshape(replica, -1), AXES)


def one_cpu() -> bool:
    """Whether there is only one device, a CPU.

    With several devices, a loop over a divided axis would gather all of it on every device.
    """
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def along(mesh: Mesh, axis: int = 0) -> NamedSharding:
    """Split along one array axis, among all devices."""
    return NamedSharding(mesh, PartitionSpec(*[None] * axis, AXES))


@dataclasses.dataclass(frozen=True)
class Division:
    """How parameters and the state of the optimiser are divided among the devices (`config.sharding`).

    mesh: of the run, or an abstract one to plan for devices that are not here.
    params: "replicate": every device holds all | "zero1": the state of the optimiser is divided | "fsdp": the
        parameters too.
    min_bytes: smaller arrays are not divided.
    Raises `UserError` for an unknown `params`.
    """

    mesh: Mesh | AbstractMesh
    params: str = "replicate"
    min_bytes: float = 2**20

    def __post_init__(self) -> None:
        if self.params not in MODES:
            raise unknown("config.sharding.params", self.params, MODES)

    def of(self, shape: Any) -> NamedSharding:
        """The sharding of one array that is divided: along its largest side that the devices can share evenly.

        shape: the array, or its `jax.ShapeDtypeStruct`.
        """
        count = self.mesh.shape["fsdp"]
        sides = [(side, -axis) for axis, side in enumerate(shape.shape) if side % count == 0]
        if count == 1 or not sides or _bytes(shape) < self.min_bytes:
            return replicated(self.mesh)
        axis = -max(sides)[1]  # the first of the largest
        return NamedSharding(self.mesh, PartitionSpec(*[None] * axis, "fsdp"))

    def of_params(self, tree: Any) -> Any:
        """The shardings of the parameters between two steps."""
        return jax.tree.map(self.of if self.params == "fsdp" else lambda _: replicated(self.mesh), tree)

    def of_optimizer(self, tree: Any) -> Any:
        """The shardings of the state of the optimiser, and of what it computes with: gradients and updates."""
        return jax.tree.map(self.of if self.params != "replicate" else lambda _: replicated(self.mesh), tree)

    def of_state(self, state: Any) -> Any:
        """The shardings of a `TrainState`, from its shapes."""
        everywhere = jax.tree.map(lambda _: replicated(self.mesh), state)
        divided = {"params": self.of_params(state.params), "opt_state": self.of_optimizer(state.opt_state)}
        return everywhere.replace(**divided)

    def place_gradients(self, grads: Any) -> Any:
        """Inside the step: each device needs the sum of its own part of the gradients only."""
        if self.params == "replicate":
            return grads
        return jax.lax.with_sharding_constraint(grads, self.of_optimizer(grads))

    def place_params(self, params: Any) -> Any:
        """Inside the step: the parameters as they are kept between two steps."""
        return (
            params if self.params == "replicate" else jax.lax.with_sharding_constraint(params, self.of_params(params))
        )

    def whole(self, params: Any) -> Any:
        """Inside the step: all parameters, which each device gathers where they are used.

        Without this the compiler divides the computation as the weights are divided, and exchanges activations. Each
        device receives the sum of its own part of the gradient only; left to itself, JAX asks for the whole sum,
        because the gradient of a gathered array is a gathered array.
        """
        if self.params != "fsdp":
            return params
        everywhere = jax.tree.map(lambda _: replicated(self.mesh), params)

        @jax.custom_vjp
        def gathered(divided: Any) -> Any:
            return jax.lax.with_sharding_constraint(divided, everywhere)

        gathered.defvjp(lambda divided: (gathered(divided), None), lambda _, grads: (self.place_gradients(grads),))
        return gathered(params)

    def line(self, params: Any) -> str:
        """One line for the user: what is divided among how many devices, and what is too small or does not divide.

        params: the shapes of the parameters.
        """
        leaves = jax.tree.leaves(params)
        whole = [leaf for leaf in leaves if self.of(leaf).is_fully_replicated]
        total, left = sum(map(_bytes, leaves)), sum(map(_bytes, whole))
        what = "parameters and optimiser are" if self.params == "fsdp" else "the optimiser is"
        uneven = [leaf for leaf in whole if _bytes(leaf) >= self.min_bytes]
        copies = f", {self.mesh.shape['replica']} copies" if self.mesh.shape["replica"] > 1 else ""
        text = (
            f"sharding    {self.params}: {what} divided among {self.mesh.shape['fsdp']} devices{copies}; "
            f"{1 - left / max(total, 1):.0%} of {total / 2**20:.1f} MiB of parameters can be divided"
        )
        if uneven and self.mesh.shape["fsdp"] > 1:
            text += f", {len(uneven)} large arrays have no side that {self.mesh.shape['fsdp']} divides"
        return text


def _bytes(shape: Any) -> int:
    return int(math.prod(shape.shape) * np.dtype(shape.dtype).itemsize)


def bytes_per_device(tree: Any, shardings: Any) -> int:
    """Bytes of a tree of arrays, or of their shapes, that one device holds."""
    parts = jax.tree.map(lambda x, s: math.prod(s.shard_shape(x.shape)) * np.dtype(x.dtype).itemsize, tree, shardings)
    return int(sum(jax.tree.leaves(parts)))


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


def on_any_process(flags: Any) -> Any:
    """Where a flag, or an array of them, is set on any process. All processes must call it."""
    flags = np.asarray(flags, bool)
    if jax.process_count() == 1:
        return flags
    from jax.experimental import multihost_utils

    every = np.asarray(multihost_utils.process_allgather(flags))
    return np.logical_or.reduce(every.reshape(jax.process_count(), *flags.shape))


def smallest_of_processes(value: float) -> float:
    """The smallest of the values of all processes. All processes must call it."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return float(np.min(multihost_utils.process_allgather(np.float32(value))))


def local_rows(batch_size: int, accum_steps: int) -> np.ndarray:
    """Indices `(B_local,)` of the global batch that this process provides.

    Accumulation step a covers the indices [a B/A, (a+1) B/A). Each process holds a contiguous
    share of them.
    """
    rows = np.arange(batch_size).reshape(accum_steps, jax.process_count(), -1)
    return rows[:, jax.process_index()].reshape(-1)


def gathered(own: Any) -> list[Any]:
    """The values of all processes in their order, through JSON. All processes must call it."""
    if jax.process_count() == 1:
        return [own]
    from jax.experimental import multihost_utils

    text = np.frombuffer(json.dumps(own).encode(), np.uint8)
    sizes = np.asarray(multihost_utils.process_allgather(np.array(len(text)))).ravel()
    padded = np.zeros(sizes.max(), np.uint8)
    padded[: len(text)] = text
    every = np.asarray(multihost_utils.process_allgather(padded)).reshape(jax.process_count(), -1)
    return [json.loads(row[:size].tobytes()) for row, size in zip(every, sizes, strict=True)]


def require_same(**values: Any) -> None:
    """Compare values over all processes, with one exchange. Raises `UserError` that names what differs.

    values: what must be equal, by a name for the message, such as `config`.
    """
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    digest = lambda value: zlib.crc32(json.dumps(value, sort_keys=True, default=str).encode())
    own = np.array([digest(value) for value in values.values()], np.uint32)
    every = np.asarray(multihost_utils.process_allgather(own)).reshape(jax.process_count(), -1)
    for name, column in zip(values, every.T, strict=True):
        others = np.flatnonzero(column != column[0])
        if len(others):
            numbers = ", ".join(map(str, others.tolist()[:5])) + (" ..." if len(others) > 5 else "")
            raise UserError(
                f"the processes of this run differ in their {name}: process 0 and process {numbers}. Start all of them "
                "with the same command, code and data"
            )
