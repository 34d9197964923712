"""ResNet, ConvNeXt and Swin as networks of this library: devices, resuming, frozen statistics, channels, refusals."""

import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from flax import traverse_util

from deblur_mae_jax import network as networks
from deblur_mae_jax import train
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import backbone, convnext, resnet, swin2d
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.weight_formats import channels

CONFIGS = ("resnet", "convnext", "swin")
MODULES = {"resnet": resnet, "convnext": convnext, "swin": swin2d}
SIZES = {"image_size": 32, "width": 8, "depths": (1, 1, 2, 1), "num_classes": 3}


def built(name, **fields):
    model = MODULES[name].Model(**SIZES | fields)
    side, chans = SIZES["image_size"], fields.get("in_chans", 1)
    params = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, side, side, chans)))["params"])()
    return model, params


DEVICES = """
import itertools, json
import jax, tiny
from deblur_mae_jax import sharding
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.training import experiment

out, whole, first = [], sharding.make_mesh, None
for count in (1, 4):
    sharding.make_mesh = lambda **_: whole(jax.devices()[:count])
    config, source, _ = inherit.resolve(tiny.config(NAME, optim__batch_size=8, data__crop_scale=(0.9, 1.0)))
    run = experiment.build(config, source=source)
    first = first or jax.device_get(run.make_state())
    state, losses = jax.device_put(first, sharding.replicated(run.mesh)), []
    for batch in itertools.islice(run.store.batches(0, 2), 2):
        state, numbers = run.train_step(state, run.arrays, batch)
        losses.append({k: float(v) for k, v in numbers.items()})
    out.append(losses)
print(json.dumps(out))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_four_devices_give_the_losses_of_one(name):
    """The statistics of a BatchNorm are those of the batch on all devices."""
    done = subprocess.run(
        [sys.executable, "-c", "import conftest\n" + DEVICES.replace("NAME", repr(name))], env=tiny.simulated(4),
        cwd=tiny.ROOT, capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    one, four = json.loads(done.stdout.splitlines()[-1])
    for a, b in zip(one, four, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=2e-6)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_stopped_run_goes_on_bit_exactly(name, tmp_path, monkeypatch):
    whole = train.train_and_evaluate(tiny.config(name), tmp_path / "whole")
    sent = []
    original = train.goodput.Clock.at

    def at(clock, step, saved=False):
        if step == 2 and not sent:
            sent.append(step)
            os.kill(os.getpid(), signal.SIGTERM)
        original(clock, step, saved)

    monkeypatch.setattr(train.goodput.Clock, "at", at)
    first = train.train_and_evaluate(tiny.config(name), tmp_path / "run")
    assert first.stopped_by == signal.SIGTERM and first.step < whole.step
    result = train.train_and_evaluate(tiny.config(name), tmp_path / "run")
    assert result.finished and result.params_fingerprint == whole.params_fingerprint
    assert (tmp_path / "run" / "predictions.csv").exists()


def images(chans=1, count=4):
    return np.random.default_rng(0).standard_normal((count, 32, 32, chans)).astype(np.float32)


@pytest.mark.slow
def test_statistics_follow_the_batches_unless_the_network_is_frozen():
    model, params = built("resnet")
    _, out = model.apply({"params": params}, images(), train=True)
    new = out["assign"]["layer1_0"]["bn1"]
    assert not np.allclose(new["running_mean"], params["layer1_0"]["bn1"]["running_mean"])
    logits, out = model.apply({"params": params}, images(), train=True, frozen=True)
    assert out["assign"] == {}
    np.testing.assert_array_equal(logits, model.apply({"params": params}, images())[0])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_frozen_network_trains_its_head_only(name):
    config = inherit.resolve(tiny.config(name, task__frozen=True))[0]
    net = networks.build(config, 3)
    shapes = jax.eval_shape(net.init)
    trained = {path for path in traverse_util.flatten_dict(shapes, sep="/") if net.task.trains(path)}
    head = {"resnet": "fc", "convnext": "head/fc", "swin": "head/fc"}[name]
    assert trained == {f"{head}/kernel", f"{head}/bias"}


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_drop_path_leaves_out_branches_in_training_only(name):
    model, params = built(name, drop_path=0.9)
    params = jax.tree.map(lambda x: x + 0.1, params)  # a new ResNet has branches of 0
    keys = jax.random.split(jax.random.key(1), 4)
    plain = model.apply({"params": params}, images())[0]
    dropped = model.apply({"params": params}, images(), drop_path_keys=keys)[0]
    assert np.abs(plain - dropped).max() > 1e-4
    np.testing.assert_array_equal(plain, model.apply({"params": params}, images())[0])


@pytest.mark.parametrize("name", tiny.others_slow(CONFIGS, "resnet"))
def test_remat_changes_nothing(name):
    model, params = built(name)
    again, _ = built(name, remat=True)
    loss = lambda net: jax.jit(jax.grad(lambda p: net.apply({"params": p}, images(), train=True)[0].sum()))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), loss(model), loss(again))


@pytest.mark.parametrize("name", tiny.others_slow(CONFIGS, "resnet"))
def test_colour_weights_give_the_same_result_for_gray_images(name):
    """Exact for networks that do not pad the first layer; a ResNet pads, so only the centre agrees."""
    three, params = built(name, in_chans=3)
    one, _ = built(name)
    configs = [inherit.resolve(tiny.config(name, model__in_chans=n))[0] for n in (3, 1)]
    old, new = (networks.build(config, 3).inputs for config in configs)
    converted = channels.convert(params, old, new, False, MODULES[name].RULES)
    gray = np.random.default_rng(0).random((2, 32, 32, 1)).astype(np.float32)
    colour = (np.repeat(gray, 3, axis=3) - np.array(old.mean)) / np.array(old.std)
    single = (gray - np.array(new.mean)) / np.array(new.std)
    if name == "resnet":
        first = lambda net, p, x: net.bind({"params": p}).bn1(net.bind({"params": p}).conv1(jnp.asarray(x)), False)[0]
        a, b = first(three, params, colour)[:, 2:-2, 2:-2], first(one, converted, single)[:, 2:-2, 2:-2]
    else:
        a, b = three.apply({"params": params}, colour)[0], one.apply({"params": converted}, single)[0]
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_layers_for_the_learning_rates():
    """Those of ConvNeXt's code: twelve groups of a large one; and every block of a Swin."""
    count, layer = convnext.layers_of(convnext.Model("L", num_classes=2))
    names = {"stem_0/kernel": 0, "stages_0/blocks_2/gamma": 1, "stages_1/downsample_0/scale": 2,
             "stages_2/downsample_1/kernel": 3, "stages_2/blocks_2/gamma": 3, "stages_2/blocks_3/gamma": 4,
             "stages_2/blocks_26/gamma": 11, "stages_3/blocks_0/gamma": 12, "head/norm/scale": 13}  # fmt: skip
    assert count == 13 and {name: layer(name) for name in names} == names
    count, layer = swin2d.layers_of(swin2d.Model("T", num_classes=2))
    names = {"patch_embed/proj/kernel": 0, "layers_0/blocks_1/norm1/scale": 2, "layers_1/downsample/norm/scale": 3,
             "layers_3/blocks_1/norm1/scale": 12, "norm/scale": 13, "head/fc/kernel": 13}  # fmt: skip
    assert count == 13 and {name: layer(name) for name in names} == names


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("resnet", {"variant": "34"}, r"config\.model\.variant: unknown name '34'.*Choices: 101, 50"),
        ("convnext", {"conditioning": "token"}, r"config\.model\.conditioning=token: a ConvNeXt has no tokens"),
        ("swin", {"conditioning": "addition"}, r"config\.model\.conditioning=addition: a Swin has no tokens"),
        ("swin", {"image_size": 30}, r"config\.image_size=30: every side must be a multiple of 4, and at least 32"),
        ("swin", {"window": 1}, r"config\.model\.window=1 must be at least 2"),
        ("resnet", {"drop_path": 1.0}, r"config\.model\.drop_path=1\.0 must be in \[0, 1\)"),
    ],
)
def test_values_that_do_not_fit_are_one_line(name, fields, message):
    with pytest.raises(UserError, match=message):
        MODULES[name].Model(**SIZES | fields)


def test_sizes_can_be_set_one_by_one():
    model = convnext.Model("B", num_classes=2, depths=(1, 2, 3, 1))
    assert (model.width, model.depths, model.widths) == (128, (1, 2, 3, 1), [128, 256, 512, 1024])
    assert backbone.variant_of(resnet.VARIANTS, "") == (64, (3, 4, 6, 3))
