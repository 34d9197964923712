"""What is assigned rather than trained, running statistics and momentum copies, has no memory of the optimiser."""

import jax
import pytest
import tiny

from deblur_mae_jax import network as networks
from deblur_mae_jax.models import layers
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.training import optimizer

# Networks for volumes have neither.
TRAINED = [name for name in tiny.CONFIGS if tiny.identity(name).kind and tiny.identity(name).axes == 2]
# Copies that are moved, not trained.
COPIES = ("momentum_encoder", "teacher")


def names(tree):
    return ["/".join(str(getattr(k, "key", k)) for k in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


@pytest.mark.parametrize("name", TRAINED)
def test_statistics_and_copies_have_no_optimiser_memory(name):
    config = inherit.resolve(tiny.config(name))[0]
    net = networks.build(config, 2 if tiny.identity(name).supervised else 0)
    params = jax.eval_shape(lambda: net.task.begin(net.init()) if net.task.begin else net.init())
    tx = optimizer.make(config.optim, lambda step: 1e-3, net.model, net.rules, net.task.trains)
    held = names(jax.eval_shape(tx.init, params))
    assigned = [n for n in names(params) if n.split("/")[-1] in layers.STATISTICS or n.split("/")[0] in COPIES]
    assert not [n for n in held for one in assigned if n.endswith(f"/{one}")]
