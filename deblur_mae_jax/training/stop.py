"""Requests to stop: SIGTERM, Ctrl-C, and the end of `--max_hours`.

In the training loop a request takes effect between two steps, after which the state is saved. Elsewhere (checking
images, searching, compiling, writing a report) nothing of the state can be lost, so it takes effect at once; with
several processes within seconds (`patience`).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from deblur_mae_jax.training import patience


class Stopped(KeyboardInterrupt):
    """Raised where a request to stop takes effect outside of the training loop.

    It is no `Exception`, so that code that goes on after a bad image does not go on after a request to stop.

    number: the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped on request ({signal.Signals(number).name})")
        self.number = number


class Stop:
    """Handles the requests to stop of a run. Use `handling`.

    number: the signal that asked to stop; 0: none did.
    reserve: seconds that the next step, evaluation and save may take, which `--max_hours` leaves for them.
    alive: called at each `poll`.
    """

    def __init__(self) -> None:
        self.number = 0
        self.reserve = 0.0
        self.alive: Callable[[], None] = lambda: None
        self._deferred = False
        self._before: dict[int, Any] = {}
        self._polls = 0
        self._patience: patience.Patience | None = None

    def install(self) -> None:
        """Handle the signals. With several processes, SIGTERM is left to JAX, which tells all of them."""
        if threading.current_thread() is not threading.main_thread():
            return
        numbers = (signal.SIGINT,) if _several() else (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            self._before[number] = signal.signal(number, self._note)
        if _several():
            own = patience.SECONDS + (patience.LEADING if jax.process_index() == 0 else 0.0)
            self._patience = patience.Patience(lambda: not self._deferred, own)
            self._patience.start()

    def remove(self) -> None:
        """Restore the handlers that were there before."""
        if self._patience is not None:
            self._patience.stop()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: Any) -> None:
        first, self.number = not self.number, number
        if first:
            quit_now = " (Ctrl-C again to quit now)" if number == signal.SIGINT else ""
            after = "after this step; saving a checkpoint" if self._deferred else "now"
            with contextlib.suppress(OSError, RuntimeError, ValueError):  # a pipe that the same Ctrl-C has closed
                print(f"stopping {after}{quit_now}", file=sys.stderr, flush=True)
        raises = not self._deferred and not _several()
        if raises and _must_end(frame):
            self._repeat(number)
            return
        if number == signal.SIGINT:  # a second Ctrl-C stops at once
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if _several():
                os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the other processes
        if raises:
            raise Stopped(number)

    def _repeat(self, number: int) -> None:
        """Send the signal again, when the code that must end may have ended."""

        def send() -> None:
            if self in _current:
                os.kill(os.getpid(), number)

        timer = threading.Timer(0.05, send)
        timer.daemon = True
        timer.start()

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only record requests inside, for `now` and `poll`."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def now(self) -> bool:
        """Whether to stop. All processes call this equally often, and get the same answer."""
        if _several():
            from jax.experimental import multihost_utils

            self._polls += 1
            if multihost_utils.reached_preemption_sync_point(self._polls):
                self.number = self.number or signal.SIGTERM
                return True
            return False
        return bool(self.number)

    def poll(self) -> None:
        """Raise `Stopped` if a stop was requested. All processes call this equally often, as a sign of life too."""
        self.alive()
        if self.now():
            raise Stopped(self.number)


_current: list[Stop] = []


def _must_end(frame: Any) -> bool:
    """Whether an exception raised in `frame` would be lost or do harm.

    Python ignores those of garbage collection. Within an event loop, in which checkpoints are read and written, it
    would close the loop, to which the threads that read and write still report. Python code that C code calls
    (modules that are imported, NumPy's reading of buffer formats) may have its exception replaced by another.
    """
    while frame is not None:
        if frame.f_code.co_name in ("__del__", "_xla_gc_callback"):
            return True
        if str(frame.f_globals.get("__name__")).startswith(
            ("asyncio.", "orbax.", "importlib._", "_frozen_importlib", "numpy._core._internal")
        ):
            return True
        frame = frame.f_back
    return False


def _behind(error: BaseException) -> Stopped | None:
    """The `Stopped` that C code replaced by `error`, if there is one."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, Stopped):
        seen = seen.__cause__ or seen.__context__
    return seen


def _several() -> bool:
    return bool(jax.process_count() > 1)


@contextlib.contextmanager
def handling() -> Iterator[Stop]:
    """Handle requests to stop inside. Within another `handling` its `Stop` is used."""
    if _current:
        yield _current[-1]
        return
    stop = Stop()
    _current.append(stop)
    stop.install()
    try:
        yield stop
    except Exception as error:
        if (stopped := _behind(error)) is not None:
            raise Stopped(stopped.number) from error
        raise
    finally:
        stop.remove()
        _current.pop()


def poll() -> None:
    """Raise `Stopped` if a stop was requested; nothing outside of `handling`."""
    if _current:
        _current[-1].poll()


def stop_before(stop: Stop, hours: float, began: float) -> None:
    """Send SIGTERM to this process in time to save before `hours` are over.

    began: `time.monotonic()` at the start of the program.
    """

    def wait() -> None:
        while time.monotonic() + max(SAVING, 1.5 * stop.reserve) < began + 3600 * hours:
            time.sleep(0.2)
        if not stop.number:
            print(f"the {hours:g} hours of --max_hours are nearly over", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True, name="max_hours").start()


# Seconds that `--max_hours` leaves at least.
SAVING = 30.0
