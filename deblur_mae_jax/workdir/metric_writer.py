"""Log the numbers of a run: always to `metrics.jsonl`, and to TensorBoard."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.workdir.run_folder import Workdir


class Writer:
    """Writes scalars and images under CLU's `MetricWriter` method names.

    `clu.metric_writers` writes the TensorBoard files if it can be imported (it needs TensorFlow), else
    tensorboardX writes them. Without a `workdir` nothing is written; of several processes only the first
    one writes.
    """

    def __init__(self, workdir: Workdir | None, resume_step: int = 0, tensorboard: bool = True):
        self.path = workdir.metrics if workdir else Path(os.devnull)
        self._last = ""
        self._drop_after(resume_step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115, closed in close()
        self._tensorboard: Any = None
        if tensorboard and workdir:
            self._open_tensorboard(workdir.tensorboard, resume_step)

    def _drop_after(self, step: int) -> None:
        """Delete the lines after the restored step, because they will be written again.

        A run that starts with step 0 writes that of step 0 again too.
        """
        if not self.path.exists():
            return
        lines, before = [], self.path.read_text()
        for line in before.splitlines():
            try:
                if step > 0 and json.loads(line)["step"] <= step:
                    lines.append(line)
            except (ValueError, KeyError):
                continue  # a truncated line, left by a killed process
        kept = "".join(line + "\n" for line in lines)
        self._last = lines[-1] + "\n" if lines else ""
        if kept != before:
            draft = self.path.with_name(self.path.name + ".tmp")
            draft.write_text(kept)
            os.replace(draft, self.path)

    def _open_tensorboard(self, folder: Path, resume_step: int) -> None:
        try:
            from clu import metric_writers

            self._tensorboard = metric_writers.SummaryWriter(str(folder))
        except ImportError:
            try:
                import tensorboardX  # noqa: F401
            except ImportError:
                logging.info("no TensorBoard files: pip install tensorboardX to have them")
                return
            self._tensorboard = _Events(folder, resume_step)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Write one line of JSON; values that are not finite become null.

        The last line is not repeated: a finished run that is started again evaluates its last step again.
        """
        values = {k: float(v) for k, v in scalars.items()}
        clean = {k: v if math.isfinite(v) else None for k, v in values.items()}
        line = json.dumps({"step": step, **clean}) + "\n"
        if line == self._last:
            return
        self._last = line
        self._file.write(line)
        self._file.flush()
        if self._tensorboard is not None:
            with self._without_it_if_full():
                self._tensorboard.write_scalars(step, values)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Write uint8 images `(H, W, 3)`, to TensorBoard only."""
        if self._tensorboard is not None:
            with self._without_it_if_full():
                self._tensorboard.write_images(step, {k: v[None] for k, v in images.items()})

    def flush(self) -> None:
        """Flush everything to disk."""
        self._file.flush()
        if self._tensorboard is not None:
            with self._without_it_if_full():
                self._tensorboard.flush()

    def close(self) -> None:
        """Flush everything to disk and close the files."""
        self._file.close()
        if self._tensorboard is not None:
            with self._without_it_if_full():
                self._tensorboard.close()

    @contextlib.contextmanager
    def _without_it_if_full(self) -> Iterator[None]:
        """Go on without TensorBoard if its file cannot be written: what follows a record cut short is unreadable."""
        try:
            yield
        except OSError as error:
            ended, self._tensorboard = self._tensorboard, None
            with contextlib.suppress(OSError):
                ended.close()
            logging.warning("no more TensorBoard files: %s", error.strerror or error)


class _Events:
    """A TensorBoard file, written at once, with the methods of CLU's `MetricWriter`.

    tensorboardX's own `SummaryWriter` writes in a thread. A full disk ends that thread, after which a call waits for
    ever.
    """

    def __init__(self, folder: Path, resume_step: int):
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        folder.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(folder / "events"))
        if resume_step:  # hides what an earlier start wrote after this step
            self._add(resume_step + 1, session_log=SessionLog(status=SessionLog.START))

    def _add(self, step: int, **content: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._writer.write_event(Event(wall_time=time.time(), step=step, **content))

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """One event per value."""
        from tensorboardX import summary

        for name, value in scalars.items():
            self._add(step, summary=summary.scalar(name, value))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """One event per image, of arrays `(1, H, W, 3)`."""
        from tensorboardX import summary

        for name, (image,) in images.items():
            self._add(step, summary=summary.image(name, image, dataformats="HWC"))

    def flush(self) -> None:
        """Write what is buffered."""
        self._writer.flush()

    def close(self) -> None:
        """Write what is buffered and close the file."""
        self._writer.close()


def read(workdir: Workdir) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    path = workdir.metrics
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
