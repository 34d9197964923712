"""Leakage: the same image, or nearly the same, in two splits, or in pre-training and in the test split."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import imagehash
import numpy as np
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from deblur_mae_jax.data.index import Index, pixel_hash
from deblur_mae_jax.data.source import BadImage

HASH_SIDE = 16
# Of HASH_SIDE ** 2 bits. Of the 200 near-duplicates that BUSI and MMOTU list, 199 are within it, and 62 pairs that they
# do not list (of 880,000), among them the same picture under two labels. 24 bits find 171.
NEAR_BITS = 40
NEAR_COSINE = 0.995
IMAGES_FILE = "image_hashes.json"


@dataclasses.dataclass
class Pair:
    """Two images that are too alike. kind: identical, near-identical, same patient, embedding."""

    kind: str
    first: str
    first_split: str
    second: str
    second_split: str
    positions: tuple[int, int]


@dataclasses.dataclass
class Leaks:
    """What was found. pretraining: names of judged images that pre-training saw; unknown where it kept
    no record."""

    pairs: list[Pair]
    pretraining: list[str]
    pretraining_known: bool
    near_checked: bool

    @property
    def any(self) -> bool:
        """Whether anything was found."""
        return bool(self.pairs or self.pretraining)

    def lines(self) -> list[str]:
        """What was found, in words."""
        out = []
        for kind in dict.fromkeys(p.kind for p in self.pairs):
            count = sum(p.kind == kind for p in self.pairs)
            example = next(p for p in self.pairs if p.kind == kind)
            out.append(
                f"{count} pair(s) across splits, {kind}: for example '{example.first}' "
                f"({example.first_split}) and '{example.second}' ({example.second_split})"
            )
        if self.pretraining:
            out.append(
                f"{len(self.pretraining)} judged image(s) were seen in pre-training, for example "
                f"'{self.pretraining[0]}'"
            )
        return out

    def write(self, path: Path) -> None:
        """CSV of every pair."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["kind", "first", "first_split", "second", "second_split"])
            for p in self.pairs:
                out.writerow([p.kind, p.first, p.first_split, p.second, p.second_split])
            for name in self.pretraining:
                out.writerow(["seen in pre-training", name, "judged", name, "pre-training"])


def perceptual_hash(pixels: np.ndarray) -> np.ndarray:
    """pHash of one image, `(HASH_SIDE ** 2,)` bits."""
    gray = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    return imagehash.phash(Image.fromarray(gray), hash_size=HASH_SIDE).hash.reshape(-1)


def compare(
    index: Index,
    positions: dict[str, np.ndarray],
    *,
    pretrained: set[str] | None = None,
    near: bool = True,
    embeddings: np.ndarray | None = None,
) -> Leaks:
    """Compare the splits with one another.

    Identical pixels and patients in two splits always; perceptual hashes with `near`; neighbours in
    `embeddings` `(N, D)`, where given. pretrained: hashes of the images that pre-training saw.
    """
    names, source = index.source.names, index.source
    split = np.full(len(index), "", dtype="<U5")
    for name, part in positions.items():
        split[part] = name
    used = [int(i) for i in np.flatnonzero(split != "")]
    pairs: dict[tuple[int, int], Pair] = {}

    def note(kind: str, i: int, j: int) -> None:
        i, j = (i, j) if i < j else (j, i)
        if split[i] != split[j] and (i, j) not in pairs:
            pairs[i, j] = Pair(kind, names[i], str(split[i]), names[j], str(split[j]), (i, j))

    hashes = list(index.hashes)
    for i in used:
        if not hashes[i]:  # only headers were read before
            try:
                hashes[i] = pixel_hash(source.read(i))
            except (BadImage, OSError):
                continue
    by_hash: dict[str, list[int]] = {}
    for i in used:
        if hashes[i]:
            by_hash.setdefault(hashes[i], []).append(i)
    for same in by_hash.values():
        for a, i in enumerate(same):
            for j in same[a + 1 :]:
                note("identical", i, j)
    if near and len(used) > 1:
        bits = np.zeros((len(used), HASH_SIDE**2), bool)
        for row, i in enumerate(used):
            try:
                bits[row] = perceptual_hash(source.read(i))
            except (BadImage, OSError):  # it could be read when the run began
                bits[row] = np.random.default_rng(i).random(HASH_SIDE**2) < 0.5
        signs = np.where(bits, 1.0, -1.0).astype(np.float32)
        for row, i in enumerate(used):
            apart = (HASH_SIDE**2 - signs[row + 1 :] @ signs[row]) / 2
            for other in np.flatnonzero(apart <= NEAR_BITS):
                note("near-identical", i, used[row + 1 + int(other)])
    if embeddings is not None and len(used) > 2:
        found = NearestNeighbors(n_neighbors=min(4, len(used)), metric="cosine")
        distance, neighbour = found.fit(embeddings[used]).kneighbors()
        for row, i in enumerate(used):
            for d, other in zip(distance[row], neighbour[row], strict=True):
                if 1 - d >= NEAR_COSINE:
                    note("near in the embedding", i, used[int(other)])
    if source.groups is not None:
        first: dict[str, dict[str, int]] = {}
        for i in used:
            if source.groups[i]:
                first.setdefault(source.groups[i], {}).setdefault(str(split[i]), i)
        for places in first.values():
            where = list(places.values())
            for a, i in enumerate(where):
                for j in where[a + 1 :]:
                    note("same patient", i, j)
    judged = positions.get("test", positions.get("val", np.empty(0, int)))
    seen = [names[i] for i in judged if pretrained and hashes[i] in pretrained]
    ordered = sorted(pairs.values(), key=lambda p: (p.kind, p.first, p.second))
    return Leaks(ordered, seen, pretrained is not None, near)


def known_hashes(folder: Path) -> set[str] | None:
    """Hashes of the images that pre-training saw, from the copy in a run's workdir."""
    path = folder / "pretrained" / IMAGES_FILE
    return set(json.loads(path.read_text())) if path.exists() else None


def hashes_of_run(folder: Path) -> list[str] | None:
    """Hashes of the images of a run, from its index; `None` where it kept none."""
    path = folder / "index.json"
    try:
        entries = json.loads(path.read_text())["entries"].values()
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return sorted({e["hash"] for e in entries if e.get("hash")}) or None
