"""Find leakage: identical or nearly identical images in two splits, or in pre-training and in the test split."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import numpy as np
from sklearn.neighbors import NearestNeighbors

from deblur_mae_jax.data import copies
from deblur_mae_jax.data.index import Index, pixel_hash
from deblur_mae_jax.data.source import BadImage, Source, subset
from deblur_mae_jax.errors import counted

NEAR_COSINE = 0.995


@dataclasses.dataclass
class Pair:
    """Two images that are too similar.

    kind: kind of similarity: identical, near-identical, same patient, or near in the embedding.
    """

    kind: str
    first: str
    first_split: str
    second: str
    second_split: str
    indices: tuple[int, int]


@dataclasses.dataclass
class Leaks:
    """The leaks that were found.

    pairs: similar images in different splits.
    pretraining: names of evaluated images that were also used in pre-training.
    pretraining_known: whether the pre-training run recorded its images.
    near_checked: whether perceptual hashes were compared too.
    contradictions: names and labels of identical images that have different labels, in any splits.
    """

    pairs: list[Pair]
    pretraining: list[str]
    pretraining_known: bool
    near_checked: bool
    contradictions: list[tuple[str, str, str, str]] = dataclasses.field(default_factory=list)

    @property
    def any(self) -> bool:
        """Whether anything was found."""
        return bool(self.pairs or self.pretraining)

    def lines(self) -> list[str]:
        """Describe each kind of leak in one line."""
        out = []
        for kind in dict.fromkeys(p.kind for p in self.pairs):
            count = sum(p.kind == kind for p in self.pairs)
            example = next(p for p in self.pairs if p.kind == kind)
            out.append(
                f"{counted(count, 'pair')} across splits, {kind}: for example '{example.first}' "
                f"({example.first_split}) and '{example.second}' ({example.second_split})"
            )
        if self.pretraining:
            out.append(
                f"pre-training also used {counted(len(self.pretraining), 'evaluated image')}, for example "
                f"'{self.pretraining[0]}'"
            )
        return out

    def contradiction(self) -> list[str]:
        """A line about identical images that have different labels; [] if there are none."""
        if not self.contradictions:
            return []
        first, label, second, other = self.contradictions[0]
        return [
            f"different labels in {counted(len(self.contradictions), 'pair')} of identical images, for example "
            f"'{first}' ({label}) and '{second}' ({other}). scripts/audit_data.py lists all of them."
        ]

    def write(self, path: Path) -> None:
        """CSV of every pair."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["kind", "first", "first_split", "second", "second_split"])
            for p in self.pairs:
                out.writerow([p.kind, p.first, p.first_split, p.second, p.second_split])
            for name in self.pretraining:
                out.writerow(["seen in pre-training", name, "judged", name, "pre-training"])


class _Pairs:
    """Pairs of similar images in different splits, each with the first kind of similarity that was found."""

    def __init__(self, index: Index, split: np.ndarray):
        self.names, self.split = index.source.names, split
        self.pairs: dict[tuple[int, int], Pair] = {}

    def note(self, kind: str, i: int, j: int) -> None:
        """Record that images `i` and `j` are similar, if they are in different splits."""
        i, j = (i, j) if i < j else (j, i)
        if self.split[i] != self.split[j] and (i, j) not in self.pairs:
            first, second = (self.names[i], str(self.split[i])), (self.names[j], str(self.split[j]))
            self.pairs[i, j] = Pair(kind, *first, *second, (i, j))

    def note_all(self, kind: str, numbers: list[int]) -> None:
        """Record that all of these images are similar."""
        for a, i in enumerate(numbers):
            for j in numbers[a + 1 :]:
                self.note(kind, i, j)


def compare(
    index: Index,
    indices: dict[str, np.ndarray],
    *,
    pretrained: set[str] | None = None,
    near: bool = True,
    embeddings: np.ndarray | None = None,
) -> Leaks:
    """Compare the splits: find identical pixels, and patients that are in two splits.

    indices: indices of the images of each split.
    pretrained: pixel hashes of the images used in pre-training.
    near: compare perceptual hashes too.
    embeddings: features `(N, D)`; if given, nearest neighbours are compared too.
    """
    names, source = index.source.names, index.source
    split = np.full(len(index), "", dtype="<U5")
    for name, numbers in indices.items():
        split[numbers] = name
    used = [int(i) for i in np.flatnonzero(split != "")]
    pairs = _Pairs(index, split)
    hashes = _hashes(index, used)
    by_hash: dict[str, list[int]] = {}
    for i in used:
        if hashes[i]:
            by_hash.setdefault(hashes[i], []).append(i)
    for same in by_hash.values():
        pairs.note_all("identical", same)
    if near and len(used) > 1:
        _note_near(pairs, index, used)
    if embeddings is not None and len(used) > 2:
        _note_neighbours(pairs, embeddings, used)
    if source.groups is not None:
        first: dict[str, dict[str, int]] = {}
        for i in used:
            if source.groups[i]:
                first.setdefault(source.groups[i], {}).setdefault(str(split[i]), i)
        for by_split in first.values():
            pairs.note_all("same patient", list(by_split.values()))
    judged = indices.get("test", indices.get("val", np.empty(0, int)))
    seen = [names[i] for i in judged if pretrained and hashes[i] in pretrained]
    ordered = sorted(pairs.pairs.values(), key=lambda p: (p.kind, p.first, p.second))
    return Leaks(ordered, seen, pretrained is not None, near, _contradictions(source, list(by_hash.values())))


def _contradictions(source: Source, identical: list[list[int]]) -> list[tuple[str, str, str, str]]:
    """Names and labels of identical images whose label differs from that of the first of them."""
    names, labels = source.names, source.labels
    if labels is None:
        return []
    return [
        (names[first], labels[first], names[i], labels[i])
        for first, *others in identical
        for i in others
        if labels[i] != labels[first]
    ]


def _hashes(index: Index, used: list[int]) -> list[str]:
    """The pixel hash of every image. It is computed here if the index read only the header."""
    hashes = list(index.hashes)
    for i in used:
        if not hashes[i]:
            try:
                hashes[i] = pixel_hash(index.source.read(i))
            except (BadImage, OSError):
                continue
    return hashes


def _note_near(pairs: _Pairs, index: Index, used: list[int]) -> None:
    """Record pairs of images that are nearly equal, also where one is mirrored or upside down."""
    for pair in copies.find(subset(index.source, np.array(used)), [""] * len(used), cropped=False):
        pairs.note(pair.kind, used[pair.first], used[pair.second])


def _note_neighbours(pairs: _Pairs, embeddings: np.ndarray, used: list[int]) -> None:
    """Record pairs of images whose features point in nearly the same direction."""
    search = NearestNeighbors(n_neighbors=min(4, len(used)), metric="cosine")
    distance, neighbour = search.fit(embeddings[used]).kneighbors()
    for row, i in enumerate(used):
        for d, other in zip(distance[row], neighbour[row], strict=True):
            if 1 - d >= NEAR_COSINE:
                pairs.note("near in the embedding", i, used[int(other)])
