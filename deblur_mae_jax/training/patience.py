"""End a process in time after a SIGTERM that it cannot look at, with several processes.

With several processes JAX handles SIGTERM, tells all of them, and they agree on a step to save. A process that
compiles, or waits for one that does, cannot look until that is over, which may be later than the seconds that a
scheduler leaves. Outside of the training loop there is nothing to save, so `Patience` ends it as a kill would.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

SECONDS = 15.0
# Process 0 leads the others, which would report its end as an error of their own.
LEADING = 2.0
# At least as large as `struct sigaction` of any system.
_SIZE = 512


class Patience:
    """Waits for SIGTERM in a thread. `start` and `stop` are called in the main thread.

    may_end: whether there is nothing to save.
    seconds: how long the process has to end by itself.
    """

    def __init__(self, may_end: Callable[[], bool], seconds: float):
        self.may_end = may_end
        self.seconds = seconds
        self._libc = ctypes.CDLL(None)
        self._jax = ctypes.create_string_buffer(_SIZE)
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._woken_before = -1

    def start(self) -> None:
        """Take SIGTERM over from JAX, which gets it back when one comes.

        Python's handlers wait for the main thread to return from a compilation. The number of a signal is written to a
        pipe at once.
        """
        self._libc.sigaction(signal.SIGTERM, None, self._jax)
        signal.signal(signal.SIGTERM, self._note)
        self._woken_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True, name="patience").start()

    def stop(self) -> None:
        """Give SIGTERM back to JAX, and end the thread."""
        signal.set_wakeup_fd(self._woken_before)
        self._libc.sigaction(signal.SIGTERM, self._jax, None)
        os.write(self._write, b"\0")

    def _note(self, number: int, frame: Any) -> None:
        """Another pipe may have been in place of ours, such as that of an event loop."""
        os.write(self._write, bytes([number]))

    def _watch(self) -> None:
        while (number := os.read(self._read, 1)[0]) != signal.SIGTERM:
            if not number:
                return
        # JAX's handler tells the other processes.
        self._libc.sigaction(signal.SIGTERM, self._jax, None)
        os.kill(os.getpid(), signal.SIGTERM)
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            time.sleep(0.1)
        if self.may_end():
            print("stopped on request (SIGTERM); run the same command again to go on", file=sys.stderr, flush=True)
            os._exit(128 + signal.SIGTERM)
