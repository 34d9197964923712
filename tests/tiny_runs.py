"""Runs that several tests look at: a tiny pre-training, and a classifier that starts from it."""

import functools
import json
import tempfile
from pathlib import Path

import tiny

from deblur_mae_jax import (
    run,
    train,
)


def new_folder(name):
    return Path(tempfile.mkdtemp()) / name


@functools.cache
def pretraining(name="quickstart"):
    """A tiny pre-training run; `d2mae` has a blur token, `mae` has not."""
    folder = new_folder(name)
    train.train_and_evaluate(tiny.config(name, optim__steps=4), folder)
    return folder


@functools.cache
def classifier():
    """A D2MAE classifier, fine-tuned for two epochs with everything switched on."""
    folder = new_folder("classifier")
    result = train.train_and_evaluate(tiny.config("finetune_folder", **fine()), folder)
    return folder, result


def fine(**overrides):
    return {"init_from": str(pretraining()), "data__phantom_seed": 1} | overrides


def go(folder, name="finetune_folder", **overrides):
    return run.run(tiny.config(name, **fine(**overrides)), folder)


def lines(folder, key):
    found = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in found if key in line}
