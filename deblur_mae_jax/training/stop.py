"""Requests to stop: SIGTERM and Ctrl-C, handled between two steps."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import jax
import numpy as np


class Stop:
    """Records SIGTERM and SIGINT, so that the loop can save a checkpoint and stop."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: Any) -> None:
        if not self.requested:
            print(
                "stopping after this step; saving a checkpoint (Ctrl-C again to quit now)",
                file=sys.stderr,
                flush=True,
            )
        self.requested = True
        if number == signal.SIGINT:  # a second Ctrl-C stops at once
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def now(self, step: int) -> bool:
        """Whether to stop after this step; all processes agree on it."""
        if jax.process_count() > 1:
            if step % 10:  # agreeing costs a round trip between the hosts
                return False
            from jax.experimental import multihost_utils

            flags = multihost_utils.process_allgather(np.array([self.requested]))
            return bool(np.any(flags))
        return self.requested
