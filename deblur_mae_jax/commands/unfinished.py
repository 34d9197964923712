"""What an interrupted prediction leaves: the same command goes on from there instead of starting again."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deblur_mae_jax.config import flat
from deblur_mae_jax.data.index import Index
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork


class Unfinished:
    """The results of the images predicted so far, in a file with one line of JSON for each.

    Results of other weights or settings, and of images whose files have changed, are not used. A line that a stopped
    process left incomplete is ignored. If the file cannot be written, the prediction goes on without it.

    path: the file, which `remove` deletes when the prediction is complete.
    key: what the results depend on besides the image (`key_of`).
    """

    def __init__(self, path: Path, index: Index, key: str):
        self.path: Path | None = path
        self.index = index
        self._known: dict[str, Any] = {}
        lines = _lines(path)
        if lines[:1] == [{"key": key}]:
            self._known = {line["image"]: line for line in lines[1:] if "image" in line}
        else:
            self._write("w", [{"key": key}])

    def results(self) -> dict[int, Any]:
        """The kept results, by the number of the image."""
        found = {}
        for number, name in enumerate(self.index.source.names):
            line, now = self._known.get(name, {}), self._state(number)
            if now and line.get("state") == now and "result" in line:
                found[number] = line["result"]
        return found

    def _state(self, number: int) -> str:
        """Changes with the pixels of an image, and with the size and time of its file; "" if they are not known."""
        source, pixels = self.index.source, self.index.hashes[number]
        # A corrected voxel size changes no pixel.
        return f"{pixels} {source.stamp(number) if source.stamp else ''}" if pixels else ""

    def add(self, results: dict[int, Any]) -> None:
        """Keep the results of some images, by their numbers."""
        names = self.index.source.names
        self._write(
            "a", ({"image": names[n], "state": self._state(n), "result": value} for n, value in results.items())
        )

    def remove(self) -> None:
        """Delete the file."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _write(self, mode: str, lines: Iterable[dict[str, Any]]) -> None:
        if self.path is None:
            return
        try:
            with open(self.path, mode, encoding="utf-8") as file:
                # A line break first: the line before may be incomplete.
                file.write("\n".join(["", *(json.dumps(line) for line in lines), ""]))
        except OSError as error:
            logging.warning("a stopped prediction will start again: cannot write '%s': %s", self.path, error.strerror)
            self.path = None


def _lines(path: Path) -> list[dict[str, Any]]:
    """The complete lines of the file; none if there is no such file."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        found += [value] if isinstance(value, dict) else []
    return found


def key_of(members: list[TrainedNetwork], *settings: object) -> str:
    """A hash of the weights and config of every network, and of other settings."""
    parts = [(member.weights_hash, sorted((k, repr(v)) for k, v in flat(member.config).items())) for member in members]
    return hashlib.sha256(repr((parts, settings)).encode()).hexdigest()[:32]
