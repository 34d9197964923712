"""Every file with an `Evaluator` in `deblur_mae_jax/evaluators` keeps `training/evaluator.py`."""

import inspect

import pytest

from deblur_mae_jax import lookup
from deblur_mae_jax.training import evaluator

EVALUATORS = lookup.modules_with("evaluators", "Evaluator")
METHODS = [name for name in vars(evaluator.Evaluator) if not name.startswith("_")]


@pytest.mark.parametrize("name", EVALUATORS)
def test_an_evaluator_has_the_methods_of_the_contract(name):
    found = EVALUATORS[name].Evaluator
    assert sorted(METHODS) == ["evaluate", "finish", "write"]
    assert list(inspect.signature(found.__init__).parameters) == ["self", "run", "workdir"]
    for method in METHODS:
        wanted = list(inspect.signature(getattr(evaluator.Evaluator, method)).parameters)
        assert list(inspect.signature(getattr(found, method)).parameters) == wanted, method
        assert getattr(found, method).__doc__


def test_every_task_names_an_evaluator():
    named = {task.KIND.evaluator for task in lookup.modules_with("tasks", "KIND").values()}
    assert named == set(EVALUATORS)
