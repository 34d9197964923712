"""Cache of blur-search results between runs, keyed by image content and weights."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import jax
import numpy as np

from deblur_mae_jax.errors import local_path

DEFAULT_CACHE = "~/.cache/deblur_mae_jax/blur_search"


class Cache:
    """Losses by image content, weights and settings, with one growing CSV per pair of weights and settings.

    An interrupted search resumes where it stopped. Lines that were truncated by a killed process are ignored.
    """

    def __init__(self, folder: str, key: str, width: int):
        where = local_path(DEFAULT_CACHE if folder == "auto" else folder, "config.search.cache")
        self.path = where / f"{key}.csv" if folder else None
        self.width = width
        self.known: dict[str, np.ndarray] = {}
        if self.path is not None and self.path.exists():
            for line in self.path.read_text(errors="replace").splitlines():
                name, *values = line.split(",")
                try:
                    row = np.array([float(v) for v in values], np.float32)
                except ValueError:
                    continue
                if len(row) == width + 1 and row[-1] == np.float32(row[:-1].sum()):
                    self.known[name] = row[:-1]

    def add(self, hashes: list[str], rows: np.ndarray) -> None:
        """Store the losses of some images, in memory and on disk. A complete line ends with the sum of the losses."""
        self.known.update(zip(hashes, rows, strict=True))
        if self.path is None or jax.process_index() != 0:
            return
        lines = [
            ",".join([name, *(f"{x:.9g}" for x in row), f"{np.float32(row.sum()):.9g}"])
            for name, row in zip(hashes, rows, strict=True)
        ]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write("\n".join(["", *lines, ""]))
        except OSError as error:  # the results are still available in memory during this run
            logging.warning("the blur search is not kept: cannot write '%s': %s", self.path, error)
            self.path = None


def cache_key(weights_hash: str, spec: dict[str, Any]) -> str:
    """Name of a cache file."""
    text = repr(sorted(spec.items()))
    return f"{weights_hash}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
