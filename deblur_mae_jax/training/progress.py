"""The progress line: rewritten in place on a terminal, printed as a plain line at intervals elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO


def duration(seconds: float) -> str:
    """`3 d 04 h`, `2 h 05 min`, `4 min 10 s` or `9 s`."""
    seconds = max(0, round(seconds))
    if seconds >= 86400:
        return f"{seconds // 86400} d {seconds % 86400 // 3600:02d} h"
    if seconds >= 3600:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    if seconds >= 60:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds} s"


class Progress:
    """Shows a progress line; without a terminal it prints at most one every `plain_every` seconds."""

    def __init__(self, stream: TextIO | None = None, plain_every: float = 15.0):
        self.stream = sys.stderr if stream is None else stream
        self.live = self.stream.isatty()
        self.plain_every = plain_every
        self._last = float("-inf")
        self._open = False

    def update(self, text: str, force: bool = False) -> None:
        """Replace the progress line with `text`."""
        now = time.monotonic()
        if not force and now - self._last < (0.1 if self.live else self.plain_every):
            return
        self._last = now
        if self.live:
            width = shutil.get_terminal_size().columns - 1
            self.stream.write("\r" + text[:width].ljust(width))
            self._open = True
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def print(self, text: str) -> None:
        """Print a permanent line."""
        if self._open:
            self.stream.write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
            self._open = False
        self.stream.write(text + "\n")
        self.stream.flush()

    def counters(self) -> tuple[Callable[[int, int], None], ...]:
        """Return the callback `(done, total)` for the check of the images, for a blur search, and for encoding."""
        return (
            lambda done, total: self.update(f"checking images: {done} of {total}"),
            lambda done, total: self.update(f"blur search: {done} of {total} images"),
            lambda done, total: self.update(f"encoding: {done} of {total} images"),
        )

    def done(self) -> None:
        """Keep the progress line and continue below it."""
        if self._open:
            self.stream.write("\n")
            self.stream.flush()
            self._open = False
