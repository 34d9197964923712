"""Refuse to train when the processes of a run differ: another config, another commit, other images."""

from __future__ import annotations

import json
import zlib
from typing import Any

import jax
import numpy as np

from deblur_mae_jax.errors import UserError


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


def require(**values: Any) -> None:
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
