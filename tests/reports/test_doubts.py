"""A classifier that learned nothing says so, and says what to try."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from tiny_runs import new_folder

from deblur_mae_jax import train
from deblur_mae_jax.metrics import segmentation as measures
from deblur_mae_jax.reports import classification, page, segmentation
from deblur_mae_jax.reports.predictions import Predictions
from deblur_mae_jax.training.evaluator import conclusion


def table(probabilities, labels):
    N = len(labels)
    blank = np.array([""] * N)
    return Predictions(
        ["benign", "malignant", "other"][: len(probabilities[0])],
        np.arange(N).astype(str), blank, np.array(["test"] * N), np.array(labels),
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
        (APART, FALLING[:2], "auroc", "never improved on its first value, that of the network before training"),
        (APART, FALLING[:1], "auroc", ""),
        (APART, [{"step": 0, "val_auroc": 1.0}, {"step": 1, "val_auroc": 1.0}], "auroc", ""),  # it cannot improve
        (APART, [{"step": 0, "val_auroc": None}, *FALLING[1:]], "auroc", ""),  # the first value is not known
    ],
)
def test_what_is_said(judged, curves, metric, words):
    said = classification.doubts(judged, curves, metric)
    assert (not said) if not words else (words in said[0] and "configs/finetune.py:small" in said[0])


def test_a_guess_among_classes_that_are_not_judged_is_not_below_chance():
    entry = {"value": 0.133, "low": 0.102, "high": 0.17}
    judged = {"per_image": {"balanced_accuracy": entry}, "per_class": {f"c{i}": 20 * (i < 2) for i in range(8)},
              "images": 40, "patients": 1, "patients_known": True}  # fmt: skip
    said = classification._against_chance({"splits": {"test": judged}, "judged_on": "test"})
    assert "does not differ significantly from chance (0.500; 0.125 for a guess among all 8 classes)" in said
    assert "of 1 patient." in said


def test_a_number_that_is_nearly_one_is_not_called_one():
    assert page.cell({"value": 0.99978, "low": 0.999, "high": 1.0}) == "> 0.999 (0.999 to 1.000)"
    assert page.cell({"value": 0.5}) == "0.500" and page.cell({"value": None}) == "-"


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0] * 20 + [1] * 9, ["9 of 'malignant'"]),
        ([0] * 10 + [1] * 10, []),
        ([0] * 3, []),
        ([0] * 20 + [1] * 9 + [2] * 2, ["2 of 'other', 9 of 'malignant'"]),
    ],
)
def test_few_patients_of_a_class_are_named(labels, words):
    said = classification.few_patients(table([[0.4, 0.3, 0.3]] * len(labels), labels))
    assert len(said) == len(words) and all(word in said[0] for word in words)


def test_the_row_of_distances_says_which_cases_it_counts():
    entry = {name: {"value": 0.5, "low": 0.4, "high": 0.6, "cases": 3} for name in measures.MEASURES}
    numbers = {"splits": {"test": {"per_image": entry, "per_label": {"a": entry}}}, "judged_on": "test",
               "labels": ["a"], "unit": "mm", "tolerance": 1.0}  # fmt: skip
    skip, count = (segmentation.measures(numbers | {"empty": empty}) for empty in ("skip", "count"))
    assert "those where the label is in truth and prediction" in skip and "those where" not in count


def test_a_test_of_one_class_has_no_chance_level():
    judged = {
        "images": 12, "patients": 12, "patients_known": True, "per_class": {"benign": 12, "malignant": 0},
        "per_image": {"balanced_accuracy": {"value": 0.47, "low": 0.05, "high": 0.94}},
    }  # fmt: skip
    said = classification._against_chance({"judged_on": "test", "splits": {"test": judged}})
    assert "have one class" in said and "chance (" not in said


def test_a_run_that_learns_nothing_says_so_in_its_conclusion_and_on_its_page(capsys):
    folder = new_folder("nothing")
    train.train_and_evaluate(tiny.config("from_scratch", optim__base_lr=1e-12, optim__min_lr=0.0), folder)
    numbers = json.loads((folder / "metrics.json").read_text())
    assert len(numbers["doubts"]) == 1 and "configs/finetune.py:small" in numbers["doubts"][0]
    assert numbers["best_step"] > 0  # not the network before training, which may be right by chance
    page = (folder / "report" / "index.html").read_text()
    said = numbers["doubts"][0][:40]
    assert said in page and said in capsys.readouterr().err


def test_a_segmentation_that_never_improved_says_so():
    lines = lambda *dice: [{"step": n, "val_dice": value} for n, value in enumerate(dice)]
    notes = lambda *dice: SimpleNamespace(config={"select.metric": "dice"}, curves=lines(*dice))
    assert not segmentation.doubts(notes(0.1, 0.2)) and not segmentation.doubts(notes(0.1))
    (line,) = segmentation.doubts(notes(0.11, 0.11, 0.05))
    assert "The validation dice never improved on its first value" in line and "optim.epochs" in line


def test_the_conclusion_has_the_intervals_of_the_report():
    entries = {"auroc": {"value": 0.8, "low": 0.7, "high": 0.9}, "f1_macro": {"value": 0.5}, "ece": {"value": None}}
    numbers = {"judged_on": "test", "splits": {"test": {"per_image": entries}}}
    found = conclusion(numbers, "words", Path("figure.png"))
    assert found.measures == {"test_auroc": 0.8, "test_f1_macro": 0.5}
    assert found.intervals == {"test_auroc": (0.7, 0.9)}
