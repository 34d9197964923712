"""Rotation, contrast and cut-outs: the views, the heads, and a run of each config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from tiny_volumes import config_of

from deblur_mae_jax import network as networks
from deblur_mae_jax import train
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline.keys import stream_keys
from deblur_mae_jax.models import swin_ssl
from deblur_mae_jax.tasks import pretext
from deblur_mae_jax.weight_formats import names

CONFIGS = ("swin_ssl_ct_mr:rotation", "swin_ssl_ct_mr:contrastive", "swin_ssl_ct_mr")


def test_views_are_turned_and_cut():
    cubes = jnp.asarray(np.random.default_rng(0).uniform(2, 3, (3, 32, 32, 32, 1)), jnp.float32)
    shares, seen = [], set()
    for seed in range(6):
        keys = jax.random.split(jax.random.key(seed), 3)
        cut, whole, turns = jax.jit(pretext.views)(keys, cubes)
        for i in range(3):
            want = np.rot90(np.asarray(cubes[i]), int(turns[i]), axes=(1, 2))
            np.testing.assert_array_equal(whole[i], want)
        changed = np.asarray(cut != whole)[..., 0]
        shares += changed.mean((1, 2, 3)).tolist()
        # Noise lies in 0..1, the other cubes above 2: both kinds of filling are there.
        filling = np.asarray(cut)[..., 0][changed]
        seen |= {bool(v) for v in np.unique(filling > 1)}
        assert filling.min() >= 0
    assert seen == {True, False} and 0.02 < np.mean(shares) < 0.4 and max(shares) < 0.6


def test_up_sampling_is_pytorchs():
    """Trilinear, corners not aligned: the values at the ends of a line are kept."""
    x = jnp.arange(4.0).reshape(1, 4, 1, 1, 1)
    got = np.asarray(swin_ssl.upsample(x))[0, :, 0, 0, 0]
    np.testing.assert_allclose(got, [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3])


@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_has_a_loss_for_every_volume(name):
    config = config_of(name)
    network = networks.build(config)
    shapes = jax.eval_shape(network.init)
    batch = {"inputs": jnp.zeros((2, 32, 32, 32, 1)), "targets": jnp.zeros((2, 32, 32, 32, 1))}
    loss, out = jax.eval_shape(network.task.loss, shapes, batch, stream_keys(0, 0, jnp.arange(2)))
    assert loss.shape == (2,) and network.flops_per_image > 1e8
    rebuilds = name == "swin_ssl_ct_mr"
    assert (out["pred"] is not None) == rebuilds == ("conv" in shapes)
    monai = {names.pytorch_name(tuple(k.key for k in path))
             for path, _ in jax.tree_util.tree_flatten_with_path(shapes)[0]}  # fmt: skip
    assert {
        "rotation_head.weight",
        "contrastive_head.bias",
        "swinViT.patch_embed.proj.weight",
    } <= monai
    assert not rebuilds or {f"conv.{n}.weight" for n in swin_ssl.PLACES} <= monai


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_runs(name, tmp_path):
    result = train.train_and_evaluate(config_of(name), tmp_path / "run")
    assert result.finished and "eval_rotation_accuracy" in result.measures
    assert list((tmp_path / "run" / "report").glob("reconstructions_*.png"))


def test_nothing_to_learn_is_refused():
    config = tiny.load("swin_ssl_ct_mr:rotation")
    config.task.rotation_weight = 0.0
    config.image_size, config.model.variant = 32, "12"
    with pytest.raises(UserError, match="are all 0"):
        networks.build(config)
    config.task.reconstruction_weight = 1.0
    with pytest.raises(UserError, match="rebuilds=True"):
        networks.build(config)
