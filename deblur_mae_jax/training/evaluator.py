"""How a network is judged during and after training: what a file of `deblur_mae_jax/evaluators` holds.

The file `deblur_mae_jax/evaluators/<name>.py` is named by a task's `KIND.evaluator`. Its class `Evaluator` is made as
`Evaluator(run, workdir)` and has the methods below.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np


class Judgement(NamedTuple):
    """What an evaluation found.

    score: higher is better; the weights with the best one are kept. None: the last weights are as good as any.
    scalars: measures by name, for `metrics.jsonl` and TensorBoard.
    images: uint8 `(H, W, 3)` by name, for the report and TensorBoard.
    """

    score: float | None
    scalars: dict[str, float]
    images: dict[str, np.ndarray]


class Conclusion(NamedTuple):
    """How a run ended.

    measures: by name.
    text: a sentence for the terminal.
    figure: the file to look at first.
    """

    measures: dict[str, float]
    text: str
    figure: Path


class Evaluator(Protocol):
    """Judges a network. Every process calls every method; only the one with `main` set writes files."""

    def evaluate(self, params: Any) -> Judgement:
        """Judge these parameters, always on the same images."""

    def write(self, step: int, judgement: Judgement) -> None:
        """The files of an evaluation; its scalars are already in `metrics.jsonl`. Called in the main process only."""

    def finish(self, step: int, params: Any, main: bool) -> Conclusion:
        """The final report.

        step: of the parameters.
        params: the best parameters of a finished run, or None: then the run was interrupted, or nothing selects
            weights.
        main: whether this process writes files.
        """
