"""The reference page of all fields."""

from pathlib import Path

import pytest
import tiny
from ml_collections import ConfigDict

from deblur_mae_jax import config
from deblur_mae_jax.config import page

ROOT = Path(__file__).parent.parent.parent


def test_the_reference_of_the_config_is_current():
    """`python -m deblur_mae_jax.config > docs/reference/config.md` brings it up to date."""
    assert (ROOT / "docs" / "reference" / "config.md").read_text() == page.reference()


def test_every_field_has_a_meaning():
    fields = {name: field for kind in config.GROUPS for name, field in config.fields_of(kind).items()}
    assert len(fields) > 100
    for name, field in fields.items():
        assert field.meaning.strip().endswith((".", ")")), f"{name}: {field.meaning}"


@pytest.mark.parametrize("name", [*tiny.CONFIGS, "mae_thyroid:small", "d2mae_thyroid:small", "finetune:small"])
def test_no_config_sets_a_field_that_has_no_effect(name):
    assert not config.without_effect(tiny.load(name))


@pytest.mark.parametrize(
    ("name", "changes", "lines"),
    [
        ("unetpp", {"optim.min_lr": 1e-5}, ["config.optim.min_lr=1e-05 has no effect: optim.schedule=constant"]),
        ("linear_probe", {"optim.b2": 0.5}, ["config.optim.b2=0.5 has no effect: optim.name=lars"]),
        ("mae_thyroid", {"model.level_code": "table"},
         ["config.model.level_code='table' has no effect: model.conditioning=none"]),
        ("knn_probe", {"probe.strengths": (1.0,)}, ["config.probe.strengths=(1.0,) has no effect: probe.kind=knn"]),
        ("segment_images", {"infer.overlap": 0.7},
         ["config.infer.overlap=0.7 has no effect: images are segmented as a whole"]),
        ("segment_volumes", {"infer.overlap": 0.7}, []),
        ("finetune", {"data.check": "header", "search.setting": "random", "search.high_pass": 1.0},
         ["config.search.high_pass=1.0 has no effect: search.setting=random",
          "config.data.check='header' has no effect: with labels all pixels are checked"]),
    ],
)  # fmt: skip
def test_fields_without_effect_are_named_with_the_reason(name, changes, lines):
    changed = tiny.load(name)
    with changed.ignore_type():
        config.change(changed, changes)
    assert config.without_effect(changed) == lines


def test_rules_name_fields_that_exist():
    from deblur_mae_jax.config import effects

    known = {name for kind in config.GROUPS for name in config.fields_of(kind)}
    assert {name for names, _, _ in effects.RULES for name in names} <= known
    assert config.without_effect(ConfigDict({"own": 1})) == []


@pytest.mark.parametrize("name", ["knn_probe", "blur_search"])
def test_runs_that_train_nothing_have_no_field_of_training(name):
    assert not {"optim", "augment", "checkpoint", "log", "sharding"} & set(tiny.load(name))
