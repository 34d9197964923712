"""A classifier that learned nothing says so, and says what to try."""

import json

import numpy as np
import pytest
import tiny
from tiny_runs import new_folder

from deblur_mae_jax import train
from deblur_mae_jax.reports import classification
from deblur_mae_jax.reports.predictions import Predictions


def table(probabilities, labels):
    N = len(labels)
    blank = np.array([""] * N)
    return Predictions(
        ["benign", "malignant"], np.arange(N).astype(str), blank, np.array(["test"] * N), np.array(labels),
        np.array(probabilities), np.zeros(N, int), np.full(N, np.nan),
    )  # fmt: skip


RISING = [{"step": n, "val_auroc": 0.5 + n / 10, "val_log_loss": 1 - n / 10} for n in range(4)]
FALLING = [{"step": n, "val_auroc": 0.5 - n / 10, "val_log_loss": 1 + n / 10} for n in range(4)]
APART = table([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]], [0, 1, 1])
ALIKE = table([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]], [0, 1, 1])


@pytest.mark.parametrize(
    ("judged", "curves", "metric", "words"),
    [
        (APART, RISING, "auroc", ""),
        (APART, RISING, "log_loss", ""),
        (ALIKE, RISING, "auroc", "All 3 judged images are predicted as 'benign'"),
        (table([[0.9, 0.1], [0.6, 0.4]], [0, 0]), RISING, "auroc", ""),  # there is one class only
        (APART, FALLING, "auroc", "The validation auroc never improved on its first value"),
        (APART, FALLING, "log_loss", "The validation log loss never improved on its first value"),
        (APART, FALLING[:2], "auroc", ""),  # too few evaluations to say so
    ],
)
def test_what_is_said(judged, curves, metric, words):
    said = classification.doubts(judged, curves, metric)
    assert (not said) if not words else (words in said[0] and "configs/finetune.py:small" in said[0])


@pytest.mark.parametrize(
    ("labels", "words"),
    [([0] * 20 + [1] * 9, "Only 9 judged patients are 'malignant'"), ([0] * 10 + [1] * 10, ""), ([0] * 3, "")],
)
def test_few_patients_of_a_class_are_named(labels, words):
    said = classification.few_patients(table([[0.5, 0.5]] * len(labels), labels))
    assert words in said[0] if words else not said


def test_a_run_that_learns_nothing_says_so_in_its_conclusion_and_on_its_page(capsys):
    folder = new_folder("nothing")
    train.train_and_evaluate(tiny.config("from_scratch", optim__base_lr=1e-12, optim__min_lr=0.0), folder)
    numbers = json.loads((folder / "metrics.json").read_text())
    assert len(numbers["doubts"]) == 1 and "configs/finetune.py:small" in numbers["doubts"][0]
    page = (folder / "report" / "index.html").read_text()
    said = numbers["doubts"][0][:40]
    assert said in page and said in capsys.readouterr().err
