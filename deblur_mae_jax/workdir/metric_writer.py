"""Log the numbers of a run: always to `metrics.jsonl`, and to TensorBoard."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
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
        self._clu = False
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
            self._clu = True
        except ImportError:
            try:
                from tensorboardX import SummaryWriter
            except ImportError:
                logging.info("no TensorBoard files: pip install tensorboardX to have them")
                return
            self._tensorboard = SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else None)

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
        if self._clu:
            self._tensorboard.write_scalars(step, values)
        elif self._tensorboard is not None:
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Write uint8 images `(H, W, 3)`, to TensorBoard only."""
        if self._clu:
            self._tensorboard.write_images(step, {k: v[None] for k, v in images.items()})
        elif self._tensorboard is not None:
            for name, image in images.items():
                self._tensorboard.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        """Flush everything to disk."""
        self._file.flush()
        if self._tensorboard is not None:
            self._tensorboard.flush()

    def close(self) -> None:
        """Flush everything to disk and close the files."""
        self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def read(workdir: Workdir) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`."""
    path = workdir.metrics
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
