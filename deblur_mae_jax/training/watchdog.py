"""End a run that hangs, so that its scheduler can start it again.

A process that no longer takes part in the exchange of a step, such as one on a frozen host, makes all others wait for
ever: no time limit of JAX ends that.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

HUNG = 124  # the exit code, that of `timeout`
STEPS = 20  # a step may take this many times as long as the typical one
SUSPENDED = 5.0  # seconds between two looks at the clock, above which the process itself was stopped
SAVES = 3  # and a save or an evaluation this many times as long as the limit of a step


class Watchdog:
    """Ends the process with exit code 124, and prints the stack of every thread, if a step takes too long.

    minutes: time that a step may take at least; 0: no limit.
    """

    def __init__(self, minutes: float):
        self.minutes = minutes
        self._until, self._what = float("inf"), ""
        self._typical: deque[float] = deque(maxlen=101)
        self._closed = threading.Event()
        self._began = time.monotonic()
        if minutes > 0:
            threading.Thread(target=self._watch, daemon=True, name="watchdog").start()

    @property
    def limit(self) -> float:
        """Seconds that a step may take."""
        return max(60 * self.minutes, STEPS * self.typical)

    @property
    def typical(self) -> float:
        """Median seconds of a step; 0 before the first."""
        return statistics.median(self._typical) if self._typical else 0.0

    def step(self, number: int) -> None:
        """Step `number` begins; the one before it has ended."""
        now = time.monotonic()
        if self._what.startswith("step"):
            self._typical.append(now - self._began)
        self._began, self._what = now, f"step {number}"
        self._until = now + self.limit

    @contextlib.contextmanager
    def longer(self, what: str, times: float = 1) -> Iterator[None]:
        """Allow what happens inside, such as an evaluation, more time than a step. It is not part of a step.

        times: how many times as long as an evaluation.
        """
        self._what, self._until = what, time.monotonic() + times * SAVES * self.limit
        yield
        self.rest()

    def again(self) -> None:
        """A part of what takes longer is done, such as a batch of an evaluation: the next one has as much time."""
        if self._what and not self._what.startswith("step"):
            self._until = time.monotonic() + SAVES * self.limit

    def rest(self) -> None:
        """Nothing is watched until the next step."""
        self._what, self._until = "", float("inf")

    def close(self) -> None:
        """Stop watching."""
        self.rest()
        self._closed.set()

    def _watch(self) -> None:
        between, woke = min(1.0, 10 * self.minutes), time.monotonic()
        while not self._closed.wait(between):
            now = time.monotonic()
            if now - woke > between + SUSPENDED:  # the whole process was stopped, as by Ctrl-Z or a scheduler
                self._until += now - woke
            woke = now
            if now > self._until:
                minutes = (time.monotonic() - self._began) / 60
                print(
                    f"error: the run hangs: {self._what} has not ended for {minutes:.1f} minutes "
                    f"(config.hang_minutes={self.minutes:g}). The stack of every thread follows. Start the same "
                    "command again to go on from the last checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr, all_threads=True)
                os._exit(HUNG)
