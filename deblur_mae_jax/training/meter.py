"""The speed of a training loop: images per second, and the share of the time spent waiting for data."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Throughput:
    """Measures whole steps only; a step that a pause interrupts does not count."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.rate = 0.0  # images per second
        self.stall = 0.0  # share of the time
        self._interrupted = False
        self.restart()

    def restart(self) -> None:
        """Restart the measurement."""
        self._started, self._steps, self._waited = time.monotonic(), 0, 0.0

    def pause(self) -> None:
        """Restart the measurement at the end of the current step, because something else took time."""
        self.restart()
        self._interrupted = self.rate > 0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time in which the loop waits for data."""
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started

    def tick(self) -> None:
        """Record the end of a step."""
        now = time.monotonic()
        elapsed = max(now - self._started, 1e-9)
        self.stall = self._waited / elapsed
        if self._interrupted:
            self._interrupted, self._started = False, now
            return
        self._steps += 1
        self.rate = self._steps * self.batch_size / elapsed

    def seconds(self, steps: int) -> float:
        """Seconds that this number of steps takes at the current rate."""
        return steps * self.batch_size / self.rate if self.rate else float("inf")
