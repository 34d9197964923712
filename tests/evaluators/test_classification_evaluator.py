"""The evaluation of a classifier while images become unreadable."""

import numpy as np
import pytest
from tiny_runs import go

from deblur_mae_jax.data.source import BadImage
from deblur_mae_jax.errors import StoreError
from deblur_mae_jax.evaluators import classification
from deblur_mae_jax.reports import predictions


def lose(source, names):
    """Make images unreadable."""
    real = source.read

    def read(number):
        if source.names[number] in names:
            raise BadImage("gone")
        return real(number)

    object.__setattr__(source, "read", read)


def test_a_test_image_that_is_lost_costs_its_row_alone(tmp_path, monkeypatch):
    finish, lost = classification.Evaluator.finish, []

    def later(self, step, params, main):
        source = self.run.index.source
        lost.append(source.names[int(self.labels.indices["test"][2])])
        lose(source, lost)
        return finish(self, step, params, main)

    monkeypatch.setattr(classification.Evaluator, "finish", later)
    shown = []
    rollouts = classification.Evaluator._rollouts

    def noted(self, params, numbers):
        shown.append([self.run.index.source.names[int(n)] for n in numbers])
        return rollouts(self, params, numbers)

    monkeypatch.setattr(classification.Evaluator, "_rollouts", noted)
    result = go(tmp_path, data__store="streaming", optim__epochs=1.0, report__audit="identical")
    table = predictions.read(tmp_path / "predictions.csv")
    judged = table.where(table.split == "test")
    assert result.finished and (tmp_path / "report" / "index.html").exists()
    assert lost[0] not in judged.names and len(judged) == 8 and "gone" in (tmp_path / "skipped.csv").read_text()
    wrong = judged.names[judged.probabilities.argmax(1) != judged.labels]
    assert set(np.concatenate([[], *shown])) <= set(wrong)


@pytest.mark.slow
def test_validation_images_that_are_lost_end_no_run(tmp_path, monkeypatch, caplog):
    """All of one class, at the second evaluation."""
    evaluate, calls = classification.Evaluator.evaluate, []

    def later(self, params):
        source = self.run.index.source
        calls.append(len(calls))
        validation = self.labels.indices["val"]
        of_first = validation[self.labels.labels[validation] == 0]
        lost = {source.names[int(n)] for n in of_first[: 9 * (len(calls) > 1)]}
        lose(source, lost)
        return evaluate(self, params)

    monkeypatch.setattr(classification.Evaluator, "evaluate", later)
    settings = {
        "optim__epochs": 3.0,
        "report__every_epochs": 1.0,
        "report__audit": "identical",
        "select__metric": "auroc",
    }
    result = go(tmp_path, data__store="streaming", **settings)
    assert result.finished and len(calls) >= 3
    assert "val_auroc is not defined" in caplog.text and "could not be read any more" in caplog.text


@pytest.mark.slow
def test_a_drive_that_is_gone_during_an_evaluation_costs_no_step(tmp_path, monkeypatch):
    evaluate, count = classification.Evaluator.evaluate, []

    def gone(self, params):
        count.append(None)
        if len(count) == 2:
            raise BadImage("no image can be read any more")
        return evaluate(self, params)

    monkeypatch.setattr(classification.Evaluator, "evaluate", gone)
    with pytest.raises(StoreError, match=r"step \d+ is saved\. Start the same command again"):
        go(tmp_path, optim__epochs=2.0, report__every_epochs=1.0)
    assert list((tmp_path / "checkpoints").glob("step_*"))
    assert go(tmp_path, optim__epochs=2.0, report__every_epochs=1.0).finished
