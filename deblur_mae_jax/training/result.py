"""How a run ends: with a result, or with a loss that is not finite."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any


class NonFiniteLossError(RuntimeError):
    """The loss or its gradient was not finite. The message names the folder with the saved step."""


@dataclasses.dataclass
class Result:
    """The result of a run.

    step: number of the last step.
    finished: whether all steps were taken or early stopping ended the run.
    report: path of the report page.
    checkpoint: path of the checkpoint of the last step; None if it could not be saved.
    params_fingerprint: hash of every bit of the parameters.
    params: parameters after the last step.
    measures: measures of the final evaluation, or of the last one if the run was interrupted.
    stopped_by: the signal that asked to stop; 0 if the run is finished.
    unwritten: parts of the final results that could not be written, as on a full disk.
    """

    step: int
    finished: bool
    report: Path
    checkpoint: Path | None
    params_fingerprint: str
    params: Any
    measures: dict[str, float] = dataclasses.field(default_factory=dict)
    stopped_by: int = 0
    unwritten: tuple[str, ...] = ()
