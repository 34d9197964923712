"""Networks for contrastive learning start from other networks, and others start from their encoder."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
import tiny
from tiny_runs import go, pretraining

from deblur_mae_jax import network as networks
from deblur_mae_jax.pretrained import inherit, trained_network, warm_start

CLASSES = ["benign", "malignant"]


@functools.cache
def trained(name, **overrides):
    """A network with fresh parameters, as if it had been trained."""
    config = inherit.resolve(tiny.config(name, **overrides))[0]
    classes = CLASSES if tiny.identity(name).supervised else []
    net = networks.build(config, len(classes))
    return trained_network.TrainedNetwork(Path(name), config, net, jax.device_get(jax.jit(net.init)()), classes)


@pytest.mark.parametrize(
    ("source", "target", "inside", "outside"),
    [
        ("mae_thyroid", "moco_v3", "", "base_encoder"), ("from_scratch", "moco_v3", "", "base_encoder"),
        ("resnet", "simclr", "", "base_encoder"), ("moco_v3", "from_scratch", "base_encoder", ""),
        ("moco_v3", "mae_thyroid", "base_encoder", ""), ("simclr", "resnet", "base_encoder", ""),
        ("diffmae", "from_scratch", "", ""), ("convmae", "convvit", "", ""), ("convvit", "convmae", "", ""),
    ],
)  # fmt: skip
def test_the_encoder_is_taken_over(source, target, inside, outside):
    before = trained(source)
    size = {"image_size": before.config.image_size}
    after = trained(target, seed=1, **size)
    shapes = jax.eval_shape(after.network.init)
    classes = after.classes
    fit = warm_start.fit(before, shapes, after.network, classes=classes)
    old = before.params[inside] if inside else before.params
    new = fit.params[outside] if outside else fit.params
    names = [name for name in old if name.startswith(("blocks", "patch_embed", "conv1", "layer", "cls_token"))]
    assert len(names) >= 3
    for name in names:
        jax.tree.map(np.testing.assert_array_equal, old[name], new[name])
    assert "taken" in "\n".join(fit.table(before))


def test_a_network_of_the_same_kind_is_taken_over_whole():
    before, after = trained("moco_v3"), trained("moco_v3", seed=1)
    fit = warm_start.fit(before, jax.eval_shape(after.network.init), after.network)
    jax.tree.map(np.testing.assert_array_equal, fit.params, before.params)
    assert not fit.new


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moco_v3", "simclr", "diffmae", "convmae"])
def test_nearest_neighbours_judge_every_pre_training(tmp_path, name):
    result = go(tmp_path, "knn_probe", init_from=str(pretraining(name)), probe__neighbours=(1, 3))
    assert 0 <= result["splits"]["test"]["per_image"]["accuracy"]["value"] <= 1
    assert (tmp_path / "report" / "index.html").exists()
