"""Load examples onto a canvas of common size, one by one or as a stream of batches."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import functools
import itertools
import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np

from deblur_mae_jax.data.index import Index
from deblur_mae_jax.data.order import InOrder, Order
from deblur_mae_jax.data.source import BadImage, Skipped

Example = dict[str, np.ndarray]
T = TypeVar("T")
# After so many unreadable images in a row, they are tried again after these seconds, by each thread that reads.
OUTAGE = 8
WAITS = (2.0, 10.0, 30.0)
PART = 16  # images that a thread reads before it hands them on, at most


class Loader:
    """Read the images of an index into the first corner of a canvas `(Hc, Wc, C)` or `(Dc, Hc, Wc, C)`.

    A file that has become unreadable is reported once and replaced by the next readable one, so a
    single file does not end a long run. If many in a row are unreadable, as when a drive is gone for a moment, they are
    tried again before they are replaced.

    index: the usable images.
    channels: channels of an image.
    extras: further arrays with one row per image, such as labels or blur levels; each example gets its row.
    split_numbers: the number of each image's split `(N,)`. A replacement comes from the same split, so a test image is
        never used for training.
    classes: the class of every value of a mask, uint8 `(256,)`. If given, each example has a `mask`.
    """

    def __init__(
        self,
        index: Index,
        channels: int,
        extras: dict[str, np.ndarray] | None = None,
        split_numbers: np.ndarray | None = None,
        classes: np.ndarray | None = None,
    ):
        self.index, self.channels, self.extras, self.split_numbers = index, channels, extras or {}, split_numbers
        self.classes = classes
        self.failed: list[Skipped] = []
        self.reported: set[str] = set()
        self.on_failure: Callable[[Skipped], None] | None = None
        self.skip_file: Path | None = None  # the file in which a copy in a worker process lists what it skips
        self._lock = threading.Lock()

    def __getstate__(self):  # a lock cannot be pickled for a worker process
        return {**self.__dict__, "_lock": None, "on_failure": None}

    def __setstate__(self, state):
        self.__dict__.update(state, _lock=threading.Lock())

    def __len__(self) -> int:
        return len(self.index)

    def read(self, number: int) -> tuple[int, np.ndarray, np.ndarray | None]:
        """Read image `number`, or the next readable one.

        Returns its index, its pixels `(*space, C)` and its mask of classes `(*space)`, or `None` without masks.
        """

        def whole(row: int) -> tuple[int, np.ndarray, np.ndarray | None]:
            image = self.index.source.read(row)
            self._check(image.shape)
            return row, image, self._mask(row, image.shape)

        return self._first_readable(number, whole)

    def _first_readable(self, number: int, read: Callable[[int], T]) -> T:
        try:
            return read(number)
        except (BadImage, OSError):
            return self._replacement(number, read)

    def _replacement(self, number: int, read: Callable[[int], T]) -> T:
        """The first readable image from `number` on. The others are reported, unless none can be read."""
        rows = np.roll(np.arange(len(self)), -number)
        if self.split_numbers is not None:
            rows = rows[self.split_numbers[rows] == self.split_numbers[number]]
        known = {item.name for item in self.failed}
        waits, failed, at = list(WAITS), list[Skipped](), 0
        while at < len(rows):
            try:
                found = read(int(rows[at]))
            except (BadImage, OSError) as error:
                failed.append(Skipped(self.index.source.names[int(rows[at])], str(error)))
                at += 1
                # So many in a row are rather a drive that is gone for a moment than damaged files.
                if at in (OUTAGE, len(rows)) and waits and any(item.name not in known for item in failed):
                    time.sleep(waits.pop(0))
                    failed, at = [], 0
                continue
            if at >= OUTAGE:  # a drive that came back in between holds the others, too
                found, at = self._earlier(rows[:at].tolist(), read) or (found, at)
            for item in failed[:at]:
                self.report(item)
            return found
        raise BadImage(f"no image can be read any more; '{failed[0].name}': {failed[0].reason}")

    @staticmethod
    def _earlier(rows: list[int], read: Callable[[int], T]) -> tuple[T, int] | None:
        """The first of these rows that can be read now, and its place; `None` if there is none."""
        for place, row in enumerate(rows):
            with contextlib.suppress(BadImage, OSError):
                return read(row), place
        return None

    def each(
        self, numbers: Iterable[int], missing: Callable[[bool], bool], required: bool
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (number, pixels) of these images, without replacements; those that cannot be read are reported.

        If many in a row are unreadable, they are tried again first, as in `read`.

        missing: whether an image is missing on any process, from whether it is on this one: all leave it out.
        required: raise `BadImage` at the end if half of the images or more could not be read.
        """
        left = collections.deque(int(number) for number in numbers)
        total, lost, row, waits = len(left), list[Skipped](), list[tuple[int, Skipped]](), list(WAITS)
        waited = False
        while left:
            number = left.popleft()
            image, why = self._pixels(number)
            if not missing(image is None):
                assert image is not None
                if waited:  # a drive that came back in between holds the others, too
                    left.extendleft(number for number, _ in reversed(row))
                else:
                    lost += [item for _, item in row]
                row, waited = [], False
                if not required:
                    for item in lost:
                        self.report(item)
                yield number, image
                continue
            row.append((number, Skipped(self.index.source.names[number], why or "another process cannot read it")))
            gone = len(row) == OUTAGE or (not left and len(row) >= min(OUTAGE, total))
            if gone and waits and any(item.name not in self.reported for _, item in row):
                time.sleep(waits.pop(0))
                left.extendleft(number for number, _ in reversed(row))
                row, waited = [], True
        lost += [item for _, item in row]
        if required and lost and 2 * len(lost) >= total:
            raise BadImage(f"{len(lost)} of {total} images can no longer be read; '{lost[-1].name}': {lost[-1].reason}")
        for item in lost:
            self.report(item)

    def _pixels(self, number: int) -> tuple[np.ndarray | None, str]:
        """The pixels of an image, or `None` and why it cannot be read."""
        try:
            return self.index.source.read(number), ""
        except (BadImage, OSError) as error:
            return None, str(error)
        except MemoryError:
            return None, "not enough memory to read it"

    def _check(self, shape: tuple[int, ...]) -> None:
        if any(side > room for side, room in zip(shape, self.index.canvas, strict=False)):
            raise BadImage("it grew since the run started")

    def _mask(self, row: int, shape: tuple[int, ...]) -> np.ndarray | None:
        if self.classes is None:
            return None
        assert self.index.source.masks is not None
        mask = self.index.source.masks(row)
        if mask.shape != shape[:-1]:
            raise BadImage("its mask changed since the run started")
        return self.classes[mask]

    def report(self, skipped: Skipped) -> None:
        """Record an unreadable image. Each image is recorded once."""
        with self._lock:
            if skipped.name in self.reported:
                return
            self.reported.add(skipped.name)
            self.failed.append(skipped)
            logging.warning("skipped %s: %s", skipped.name, skipped.reason)
            try:
                self._list(skipped)
            except OSError as error:  # a full disk does not end a run that goes on without this image
                logging.warning("the list of skipped images could not be written: %s", error.strerror or error)

    def _list(self, skipped: Skipped) -> None:
        if self.on_failure is not None:
            self.on_failure(skipped)
        if self.skip_file is not None:
            # One write, so that the lines of several processes do not mix.
            with open(self.skip_file, "ab", buffering=0) as file:
                file.write((json.dumps(dataclasses.asdict(skipped)) + "\n").encode())

    def example(self, number: int) -> Example:
        """Image `number` as an example: `image` on the canvas, its true `size`, its `mask`, and the extras."""
        return self.placed(*self.read(number))

    def placed(self, row: int, image: np.ndarray, mask: np.ndarray | None = None) -> Example:
        """Build an example from an image that was read."""
        canvas = np.zeros((*self.index.canvas, self.channels), self.index.source.dtype)
        put(canvas, image)
        extras = {name: values[row] for name, values in self.extras.items()}
        if mask is not None:
            extras["mask"] = np.zeros(self.index.canvas, np.uint8)
            put(extras["mask"], mask)
        return {"image": canvas, "size": np.array(image.shape[:-1], np.int32), **extras}

    def cube(self, number: int, sides: tuple[int, ...], begin: Callable[[tuple[int, ...]], np.ndarray]) -> Example:
        """A cube of volume `number` as an example, read without the rest of the volume where its source can do so.

        `image` `(*sides, C)` and `mask` hold the part of the cube that is inside the volume, in their first
        corner. `start` `(3,)` is the first voxel of the cube, and `size` the true size of the volume.

        sides: of the cube, voxels.
        begin: `(D, H, W) -> (3,)`, the first voxel of the cube; negative: before the volume.
        """

        def part(row: int) -> Example:
            source = self.index.source
            volume = (source.lazy or source.read)(row)
            self._check(volume.shape)
            start = begin(volume.shape[:-1])
            inside = tuple(
                slice(max(a, 0), min(a + side, n))
                for a, side, n in zip(start.tolist(), sides, volume.shape, strict=False)
            )
            out = {name: values[row] for name, values in self.extras.items()}
            out |= {"image": np.zeros((*sides, self.channels), source.dtype), "start": start}
            put(out["image"], volume[inside])
            mask = self._mask(row, volume.shape)
            if mask is not None:
                out["mask"] = np.zeros(sides, np.uint8)
                put(out["mask"], mask[inside])
            return out | {"size": np.array(volume.shape[:-1], np.int32)}

        return self._first_readable(number, part)


def put(canvas: np.ndarray, image: np.ndarray) -> None:
    """Copy an image `(*space, C)`, or a mask `(*space)`, into the first corner of `canvas`."""
    canvas[tuple(slice(0, side) for side in image.shape)] = image


class Cubes(Protocol):
    """The places of the random cubes of a run."""

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of a cube, voxels."""

    def start(self, step: int, row: int, size: tuple[int, ...]) -> np.ndarray:
        """First voxel `(3,)` of the cube of example `row` of a batch, in a volume of `size` (D, H, W)."""


@dataclasses.dataclass
class _ReadPosition:
    loader: Loader
    order: Order | InOrder
    rows: np.ndarray  # indices within a batch that this process reads
    cubes: Cubes | None

    def __call__(self, number: int) -> Example:
        step, within = divmod(number, len(self.rows))
        row = int(self.rows[within])
        image = self.order(step * self.order.batch_size + row)
        if self.cubes is None:
            return self.loader.example(image)
        begin = functools.partial(self.cubes.start, step, row)
        return self.loader.cube(image, self.cubes.sides, begin)


def stream(
    loader: Loader,
    order: Order | InOrder,
    *,
    start_step: int,
    num_steps: int,
    rows: np.ndarray,
    num_threads: int = 4,
    num_workers: int = 0,
    cubes: Cubes | None = None,
) -> Iterator[Example]:
    """Stream this process's part of every batch, read ahead by Grain's threads or worker processes.

    Batches depend on (seed, step) alone, so a resumed run starts the stream at its step and needs no
    saved iterator state.

    rows: indices within a batch that this process reads `(B_local,)`.
    num_threads: threads that read images.
    num_workers: processes that read ahead. 0: threads only.
    cubes: if given, examples are cubes of volumes (`Loader.cube`) instead of whole volumes.
    """
    import grain.python as grain

    share = len(rows)
    read = _ReadPosition(loader, order, rows, cubes)
    dataset = grain.MapDataset.range(start_step * share, num_steps * share).map(read)
    # A thread reads a part of a batch at a time. One image would cost more in Grain than in reading; of whole batches,
    # Grain's buffer, which counts them, would hold many. A cube of a volume takes long enough to be read alone.
    most = PART if cubes is None else 1
    part = max(size for size in range(1, min(most, share) + 1) if share % size == 0)
    count = share // part
    ahead = max(num_threads, 2 * count // max(1, num_workers))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=ahead)
    parts = dataset.batch(part, drop_remainder=True).to_iter_dataset(options)
    return _joined(_from_workers(parts, read, num_workers) if num_workers else iter(parts), count)


def _joined(parts: Iterator[Example], count: int) -> Iterator[Example]:
    """Batches of `count` parts each."""
    while len(batch := list(itertools.islice(parts, count))) == count:
        yield batch[0] if count == 1 else {name: np.concatenate([part[name] for part in batch]) for name in batch[0]}


def _from_workers(batches: Any, read: _ReadPosition, num_workers: int) -> Iterator[Example]:
    """Yield the parts of batches of worker processes. The loader of this process reports what theirs skip."""
    import grain.python as grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # Grain's workers read absl flags, also in a notebook
        flags.FLAGS.mark_as_parsed()
    loader = read.loader
    with tempfile.TemporaryDirectory() as folder:
        read.loader = copy.copy(loader)  # the one that the workers get
        read.loader.skip_file = Path(folder) / "skipped"
        read.loader.skip_file.touch()
        with open(read.loader.skip_file, encoding="utf-8") as listed:
            for batch in batches.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers)):
                for line in listed:
                    loader.report(Skipped(**json.loads(line)))
                yield batch
