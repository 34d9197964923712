"""Every word that a config takes after its colon gives a config that can be built; the small recipes fit together."""

import re

import numpy as np
import pytest

import deblur_mae_jax as dm
from deblur_mae_jax import config as fields
from deblur_mae_jax import network as networks
from deblur_mae_jax import train
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.training import checks
from tests import tiny


def words(name):
    """The words of a config, from its own message; none if it takes none."""
    try:
        tiny.load(f"{name}:no such word")
    except UserError as error:
        return re.search(r"Choices: (.*?)\.?$", str(error)).group(1).split(", ")
    except TypeError:
        return []
    raise AssertionError(f"{name} takes any word")


PAIRS = [f"{name}:{word}" for name in tiny.CONFIGS for word in words(name)]


@pytest.mark.parametrize("pair", PAIRS)
def test_every_word_builds(pair):
    config = tiny.load(pair)
    checks._check_ranges(fields.flat(config))
    identity = networks.identify(config)
    if identity.kind and not identity.starts_from_pretrained and not identity.supervised:
        networks.build(inherit.resolve(config)[0])


@pytest.mark.parametrize(
    ("pair", "field", "value"),
    [
        ("convvit:upstream", "optim.base_lr", 1e-3), ("beit:upstream", "optim.base_lr", 1e-3),
        ("beit:upstream", "optim.warmup_epochs", 5.0), ("finetune:upstream", "optim.min_lr", 1e-6),
        ("dae_ct_mr:upstream", "optim.epochs", 1000.0), ("dae_ct_mr:noise,upstream", "optim.epochs", 300.0),
        ("dae_ct_mr:local_masking,upstream", "optim.epochs", 300.0),
        ("segment_btcv:upstream", "report.every_epochs", 5.0),
        ("dae_ct_mr:all,upstream", "optim.warmup_steps", 0),
        ("mae3d_ct_mr:upstream", "optim.warmup_epochs", 4.0), ("mae3d_ct_mr:upstream", "optim.epochs", 300.0),
        ("finetune:ovary", "data.val_split", "auto"), ("dae_ct_mr:upstream", "task.contrast", "paper"),
        ("dae_ct_mr:downsampling,upstream", "task.degrade", "resample.down_up(4, method='nearest')"),
        ("dae_ct_mr:downsampling", "task.degrade", "resample.down_up(4)"),
    ],
)  # fmt: skip
def test_published_commands(pair, field, value):
    assert fields.flat(tiny.load(pair))[field] == value


def test_a_range_holds_for_every_number_of_a_field():
    checks._check_ranges({"model.num_heads": [2, 4, 8, 16], "model.depth": None})
    with pytest.raises(UserError, match=r"config.model.num_heads=\[2, 0\] must be at least 1"):
        checks._check_ranges({"model.num_heads": [2, 0]})


def test_there_are_words():
    assert {"d2mae_thyroid:small", "mae_thyroid:small", "finetune:small", "resnet:own"} <= set(PAIRS)
    assert {"simclr:small", "resnet:small"} <= set(PAIRS)


@pytest.mark.parametrize("name", ("simclr:vit,small", "convnext:small"))
def test_there_is_no_small_recipe_for_other_networks(name):
    with pytest.raises(UserError, match="small"):
        tiny.load(name)


@pytest.mark.slow
def test_the_small_resnet_fits_together(tmp_path):
    """`resnet:small` starts from a run of `simclr:small` without further flags."""
    few = {
        "data.name": "phantoms", "data.num_images": 24, "data.side": 100, "data.num_threads": 2, "optim.batch_size": 4,
        "log.tensorboard": False,
    }  # fmt: skip
    short = {"optim.steps": 2, "report.num_images": 2, "report.num_eval_images": 2}
    train.train_and_evaluate(fields.change(tiny.load("simclr:small"), few | short), tmp_path / "pretrained")
    short = {"init_from": str(tmp_path / "pretrained"), "optim.epochs": 1.0, "optim.warmup_epochs": 0.5}
    train.train_and_evaluate(fields.change(tiny.load("resnet:small"), few | short), tmp_path / "classifier")
    trained = dm.load(tmp_path / "classifier")
    assert trained.config.image_size == 96 and trained.model.width == 16
    assert dm.predict(trained, [np.zeros((80, 90), np.uint8)]).shape == (1, len(trained.classes))


@pytest.mark.slow
@pytest.mark.parametrize("name", ("mae_thyroid", "denoising_mae_thyroid", "deblur_mae_thyroid", "d2mae_thyroid"))
def test_the_small_recipes_fit_together(name, tmp_path):
    """`config:small` pre-trains at its own size, and `finetune:small` starts from it without further flags."""
    few = {
        "data.name": "phantoms", "data.num_images": 24, "data.side": 100, "data.num_threads": 2,
        "log.tensorboard": False,
    }  # fmt: skip
    short = {"optim.steps": 2, "optim.batch_size": 4, "report.num_images": 2, "report.num_eval_images": 2}
    train.train_and_evaluate(fields.change(tiny.load(f"{name}:small"), few | short), tmp_path / "pretrained")
    short = {"init_from": str(tmp_path / "pretrained"), "optim.epochs": 1.0, "optim.warmup_epochs": 0.5}
    train.train_and_evaluate(fields.change(tiny.load("finetune:small"), few | short), tmp_path / "classifier")
    trained = dm.load(tmp_path / "classifier")
    assert trained.config.image_size == 96 and trained.config.model.embed_dim == 192
    assert trained.config.task.blur_site == "network"
    assert dm.predict(trained, [np.zeros((80, 90), np.uint8)]).shape == (1, len(trained.classes))
