"""Where the time of a run went since its first start, over all its starts: steps, compiling, saving, lost work.

Each start of a run is an entry of `time.json`, which is written again as the run goes on, so that a process that is
killed leaves what it had counted.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deblur_mae_jax.workdir.run_folder import write_json

# The parts of the time of a start, in the order of the report. What is none of the others is `steps` in the loop.
PARTS = ("steps", "compile", "data", "evaluate", "save", "setup")
MEANING = {
    "steps": "steps", "compile": "compiling", "data": "waiting for data", "evaluate": "evaluating", "save": "saving",
    "setup": "starting", "lost": "steps taken twice", "down": "not running",
}  # fmt: skip
WRITE_EVERY = 5.0  # seconds


class Clock:
    """Counts the time of this start.

    path: `time.json`; None: nothing is written.
    """

    def __init__(self, path: Path | None):
        self.path = path
        self.starts = read(path)
        self._last, self._part = time.monotonic(), "setup"
        self._written = 0.0
        self.own: dict[str, Any] = {"began": time.time(), "ended": time.time(), "from": None, "step": None}
        self.own["seconds"] = dict.fromkeys(PARTS, 0.0)
        self.starts.append(self.own)

    def enter(self, part: str) -> str:
        """Count the time from now on as `part`. Returns the part before."""
        now = time.monotonic()
        self.own["seconds"][self._part] += now - self._last
        before, self._last, self._part = self._part, now, part
        return before

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the time inside as `name`."""
        before = self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def at(self, step: int, saved: bool = False) -> None:
        """Note the step that was reached, or from which the run went on, and write the file every few seconds."""
        if self.own["from"] is None:
            self.own["from"] = step
        self.own["step"] = step
        if saved or time.monotonic() - self._written > WRITE_EVERY:
            self.write()

    def write(self) -> None:
        """Write the file."""
        self.enter(self._part)
        self.own["ended"] = time.time()
        self._written = time.monotonic()
        if self.path is not None:
            with contextlib.suppress(OSError):  # a full disk is reported by what matters more
                write_json(self.path, self.starts)


def read(path: Path | None) -> list[dict[str, Any]]:
    """The starts that a file lists; [] if there is none, or if it is damaged."""
    try:
        starts = json.loads(path.read_text()) if path is not None else []
        shares(starts)
        return starts if isinstance(starts, list) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def shares(starts: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds by part since the first start: `PARTS`, `lost`, `down`; their sum is `wall`.

    lost: the time of steps that a later start took again.
    down: the time between two starts.
    """
    seconds = dict.fromkeys((*PARTS, "lost", "down"), 0.0)
    for number, start in enumerate(starts):
        for part in PARTS:
            seconds[part] += float(start["seconds"].get(part, 0.0))
        if number + 1 == len(starts):
            break
        following = starts[number + 1]
        # A clock that was set back between two starts is no time in which the run did not run.
        seconds["down"] += max(0.0, float(following["began"]) - float(start["ended"]))
        # A start that ended before its first step took none again.
        again = next((s["from"] for s in starts[number + 1 :] if s["from"] is not None), None)
        first, last = start["from"], start["step"]
        if None not in (first, last, again) and last > max(first, again):
            lost = float(start["seconds"]["steps"]) * (last - max(first, again)) / (last - first)
            seconds["lost"] += lost
            seconds["steps"] -= lost
    return seconds | {"wall": sum(seconds.values())}


def line(starts: list[dict[str, Any]]) -> str:
    """`2 h 10 min since the first start: steps 93%, evaluating 4%, ...; 3 starts`."""
    seconds = shares(starts)
    wall = seconds.pop("wall")
    parts = [f"{MEANING[name]} {value / max(wall, 1e-9):.0%}" for name, value in seconds.items()]
    shown = [text for text, value in zip(parts, seconds.values(), strict=True) if value >= 0.005 * wall]
    times = "" if len(starts) == 1 else f"; {len(starts)} starts"
    return f"{_duration(wall)} since the first start: {', '.join(shown)}{times}"


def _duration(seconds: float) -> str:
    hours, minutes = int(seconds // 3600), int(seconds % 3600 // 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {int(seconds % 60):02d} s" if minutes else f"{seconds:.0f} s"
