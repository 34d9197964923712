"""Every network of `deblur_mae_jax/models` keeps `models/contract.py`, with every config that uses it."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_volumes

from deblur_mae_jax import lookup, network
from deblur_mae_jax.models.contract import Rules
from deblur_mae_jax.pretrained import inherit

MODELS = lookup.modules_with("models", "Model")
TRAINED = [name for name in tiny.CONFIGS if tiny.identity(name).kind]


def built(name):
    """The network of a config, shrunk, with three classes if it has labels."""
    identity = tiny.identity(name)
    if identity.axes == 2:
        config = tiny.config(name)
    else:
        config = (tiny_volumes.segmentation if identity.supervised else tiny_volumes.config_of)(name, init_from="")
    return network.build(inherit.resolve(config)[0], 3 if identity.supervised else 0)


def test_every_network_has_a_config():
    assert {tiny.load(name).model.name for name in TRAINED} == set(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_the_file_of_a_network_has_what_the_contract_names(name):
    module = MODELS[name]
    assert module.AXES in network.IMAGES
    kinds = {task.KIND.name for task in lookup.modules_with("tasks", "KIND").values()}
    assert module.KINDS and set(module.KINDS) <= kinds
    rules = module.RULES if isinstance(module.RULES, Rules) else inspect.signature(module.RULES).return_annotation
    assert isinstance(rules, Rules) or rules == "Rules"
    assert list(inspect.signature(module.flops_per_image).parameters)[:2] == ["model", "mask_ratio"]
    parameters = inspect.signature(module.Model).parameters
    assert next(iter(parameters)) == "variant"
    assert module.Model.__doc__ and module.__doc__


@pytest.mark.parametrize("name", TRAINED)
def test_a_network_returns_a_prediction_and_what_else_it_knows(name):
    net = built(name)
    shapes = jax.eval_shape(net.init)
    side = net.model.image_size if net.axes == 2 else 32
    images = jnp.zeros((2, *[side] * net.axes, net.model.in_chans))
    prediction, out = jax.eval_shape(
        lambda params: net.model.apply({"params": params}, images, level=jnp.ones(2, int)), shapes
    )
    assert isinstance(out, dict)
    if net.kind in ("classify", "segment"):
        assert prediction.shape[0] == 2 and prediction.shape[-1] == 3
    assert net.flops_per_image > net.forward_flops > 0


@pytest.mark.parametrize("name", TRAINED)
def test_the_rules_know_every_parameter(name):
    net = built(name)
    shapes = jax.eval_shape(net.init)
    rules, tops = net.rules, sorted(shapes)
    parameters = ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]]
    if rules.layers is not None:
        count, layer = rules.layers(net.model)
        assert {layer(top) for top in tops} <= set(range(count + 1)) and max(map(layer, tops)) == count
    assert any(rules.encodes(name) for name in parameters)
    if net.supervised:
        assert any(name.startswith(rules.heads) for name in parameters)
    assert all(isinstance(table, np.ndarray) for table in rules.tables(net.model).values())
