"""The interface of an evaluator, which evaluates a network during and after training.

A task names its evaluator in `KIND.evaluator`; the file is `deblur_mae_jax/evaluators/<name>.py`. It defines a class
`Evaluator`, constructed as `Evaluator(run, workdir)`, with the methods below.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

import numpy as np


class Judgement(NamedTuple):
    """The result of an evaluation.

    score: the weights with the highest score are kept; None if the evaluation does not select weights.
    scalars: measures by name, for `metrics.jsonl` and TensorBoard.
    images: uint8 images `(H, W, 3)` by name, for the report and TensorBoard.
    """

    score: float | None
    scalars: dict[str, float]
    images: dict[str, np.ndarray]


class Conclusion(NamedTuple):
    """The final result of a run.

    measures: the measures by name.
    text: sentences for the terminal.
    figure: path of the figure to look at first.
    intervals: of the measures that have one, 95 %.
    """

    measures: dict[str, float]
    text: str
    figure: Path
    intervals: Mapping[str, tuple[float, float]] = MappingProxyType({})


class Evaluator(Protocol):
    """Evaluates a network. Every process calls every method; only the process with `main` set writes files."""

    def evaluate(self, params: Any) -> Judgement:
        """Evaluate these parameters, always on the same images."""

    def write(self, step: int, judgement: Judgement) -> None:
        """Write the files of an evaluation, except `metrics.jsonl`. Only the main process calls this."""

    def finish(self, step: int, params: Any, main: bool) -> Conclusion:
        """Write the final report.

        step: training step at which the parameters were saved.
        params: the best parameters of a finished run; None if the run was interrupted or does not select weights.
        main: whether this process writes files.
        """


def conclusion(numbers: dict[str, Any], text: str, figure: Path) -> Conclusion:
    """The conclusion from the numbers of a report."""
    name = numbers["judged_on"]
    found = {f"{name}_{k}": v for k, v in numbers["splits"][name]["per_image"].items() if v["value"] is not None}
    intervals = {k: (v["low"], v["high"]) for k, v in found.items() if v.get("low") is not None}
    return Conclusion({k: v["value"] for k, v in found.items()}, text, figure, intervals)
