"""Every objective of `deblur_mae_jax/tasks` keeps `tasks/contract.py`."""

import inspect

import pytest
import tiny

from deblur_mae_jax import config as fields
from deblur_mae_jax import lookup, network
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.tasks.contract import Kind

TASKS = lookup.modules_with("tasks", "KIND")


def config_with(task):
    return next(name for name in tiny.CONFIGS if tiny.load(name).task.name == task)


@pytest.mark.parametrize("name", TASKS)
def test_the_file_of_a_task_has_what_the_contract_names(name):
    kind, make = TASKS[name].KIND, TASKS[name].make
    assert isinstance(kind, Kind) and set(kind.axes) <= set(network.IMAGES)
    lookup.module("evaluators", kind.evaluator, "Evaluator", "KIND.evaluator")
    parameters = list(inspect.signature(make).parameters.values())
    assert parameters[0].name == "model"
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters[1:])
    assert make.__doc__ and TASKS[name].__doc__


@pytest.mark.parametrize("name", TASKS)
def test_defaults_of_a_task_are_those_of_the_config(name):
    """A setting has one default; the signature repeats it for those who call `make` themselves."""
    kinds = [kind for kind, values in fields.VALUES.items() if values.get("task.name") == name]
    known = {k.removeprefix("task."): f for kind in kinds for k, f in fields.fields_of(kind).items()}
    for parameter in list(inspect.signature(TASKS[name].make).parameters.values())[1:]:
        if parameter.name == "class_weights" or parameter.default is inspect.Parameter.empty:
            continue
        assert parameter.name in known, parameter.name
        default = known[parameter.name].default
        assert default == parameter.default or config_overrides(name, parameter), (name, parameter, default)


def config_overrides(name, parameter):
    """Whether the kinds of run with this task set another default."""
    return any(
        values.get("task.name") == name and values.get(f"task.{parameter.name}") == parameter.default
        for values in fields.VALUES.values()
    )


@pytest.mark.parametrize("name", TASKS)
def test_a_field_that_a_task_does_not_take_is_an_error(name):
    config = tiny.load(config_with(name)).unlock()
    config.task.no_such_setting = 1
    from deblur_mae_jax.pretrained import inherit

    config.init_from = ""
    resolved = inherit.resolve(config)[0]
    with pytest.raises(UserError, match=r"config\.task: unknown name 'no_such_setting'"):
        network.build(resolved, 3)
