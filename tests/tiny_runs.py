"""Runs that several tests look at: a tiny pre-training, and a classifier that starts from it."""

import dataclasses
import functools
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import tiny

from deblur_mae_jax import network as networks
from deblur_mae_jax import train
from deblur_mae_jax.commands.run import run as start
from deblur_mae_jax.pretrained import inherit, trained_network


def new_folder(name):
    return Path(tempfile.mkdtemp()) / name


@functools.cache
def pretraining(name="quickstart"):
    """A tiny pre-training run; `d2mae` has a blur token, `mae` has not."""
    folder = new_folder(name)
    train.train_and_evaluate(tiny.config(name, optim__steps=4), folder)
    return folder


@functools.cache
def trained(name, **overrides):
    """A network with fresh parameters, as if it had been trained."""
    config = inherit.resolve(tiny.config(name, **overrides))[0]
    classes = ["benign", "malignant"] if tiny.identity(name).supervised else []
    net = networks.build(config, len(classes))
    return trained_network.TrainedNetwork(Path(name), config, net, jax.device_get(jax.jit(net.init)()), classes)


def stirred(name, **overrides):
    """A network whose parameters are all random, statistics too."""
    network = trained(name, **overrides)
    rng = np.random.default_rng(0)

    def draw(path, value):
        noise = 0.1 * rng.standard_normal(value.shape).astype(np.float32)
        return np.abs(noise) + 0.5 if path[-1].key == "running_var" else value + noise

    params = jax.tree_util.tree_map_with_path(draw, network.params)
    classes = ["background", "lesion"] if network.network.kind == "segment" else network.classes
    return dataclasses.replace(network, params=params, classes=classes)


def assert_same_params(network, other):
    flat, held = (dict(jax.tree_util.tree_leaves_with_path(n.params)) for n in (network, other))
    assert flat.keys() == held.keys()
    for path, value in flat.items():
        np.testing.assert_array_equal(held[path], value, err_msg=str(path))


@functools.cache
def classifier():
    """A D2MAE classifier, fine-tuned for two epochs with everything switched on."""
    folder = new_folder("classifier")
    result = train.train_and_evaluate(tiny.config("finetune", **fine()), folder)
    return folder, result


def fine(**overrides):
    return {"init_from": str(pretraining()), "data__phantom_seed": 1} | overrides


def go(folder, name="finetune", **overrides):
    return start(tiny.config(name, **fine(**overrides)), folder)


def lines(folder, key="loss"):
    found = [json.loads(x) for x in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[key] for line in found if key in line}


def run(workdir, name="quickstart", **overrides):
    return train.train_and_evaluate(tiny.config(name, **overrides), workdir)


@functools.cache
def plain_run():
    """One run of 6 steps that others are compared with; its folder is kept for the session."""
    folder = Path(tempfile.mkdtemp())
    return folder, run(folder, optim__steps=6, checkpoint__keep_last=9)


def command(workdir, name="quickstart", devices=1, **overrides):
    flags = tiny.flags(name, **overrides)
    program = [sys.executable, str(tiny.ROOT / "main.py"), *flags, f"--workdir={workdir}"]
    return program, tiny.simulated(devices)


def launch(workdir, name="quickstart", devices=1, **overrides):
    arguments, environment = command(workdir, name, devices, **overrides)
    done = subprocess.run(arguments, env=environment, cwd=tiny.ROOT, capture_output=True, text=True, timeout=240)
    return done.returncode, done.stderr
