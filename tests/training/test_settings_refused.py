"""Settings that would train something else than they say, or nothing: each is refused in one line."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_volumes

from deblur_mae_jax import network as networks
from deblur_mae_jax.data import dataset
from deblur_mae_jax.degradations import speckle
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import convolution, layers
from deblur_mae_jax.tasks import disrupted_recon
from deblur_mae_jax.training import checks

VOLUMES = {"dae_ct_mr", "mae3d_ct_mr", "swin_ssl_ct_mr"}


def built(name, **fields):
    config = tiny_volumes.config_of(name, **fields) if name in VOLUMES else tiny.resolved(name, **fields)
    checks.check(config)
    return networks.build(config, 2 if tiny.identity(name).supervised else 0)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("swin_ssl_ct_mr", {"task__degrade": "noise.gaussian_noise(variance=0.1, clip=False)"}, "makes its own views"),
        ("dino_v2", {"optim__batch_size": 4, "optim__accum_steps": 4}, "at least 2 at once"),
        ("dae_ct_mr", {"optim__batch_size": 2, "optim__accum_steps": 2}, "config.task.contrast=none switches"),
        ("dae_ct_mr", {"model__in_chans": 3}, "model.in_chans=3 must be 1"),
        ("dae_ct_mr", {"model__out_chans": 2}, "model.out_chans=2 must be 1"),
        ("mae3d_ct_mr", {"model__layout": "as_coded"}, "model.mask_token is not for config.model.layout=as_coded"),
        ("diffmae", {"task__steps": 50}, "leave 29% of the signal after the last step"),
        ("segment_images", {"model__width": 7}, "choose a multiple of 4"),
    ],
)
def test_it_is_refused(name, fields, message):
    with pytest.raises(UserError, match=message):
        built(name, **fields)


def test_steps_of_srad_without_the_quarter_are_smaller():
    with pytest.raises(ValueError, match=r"must be in \(0, 0.25\] with quarter=False"):
        speckle.srad(5, 0.5, q0="image", quarter=False)


def test_a_norm_over_one_value_is_refused():
    norm, x = layers.BatchNorm(), jnp.ones((1, 1, 1, 3))
    params = norm.init(jax.random.key(0), x, train=True)
    with pytest.raises(UserError, match="at least 2 images at once"):
        norm.apply(params, x, train=True)
    assert norm.apply(params, x, train=False)[0].shape == x.shape


def test_unseen_phantoms_of_volumes_are_others():
    seen, unseen = (
        dataset.load_source(tiny_volumes.config_of(data__num_images=10), split) for split in ("all", "unseen")
    )
    assert len(unseen) == 2 and not set(seen.names) & set(unseen.names)
    assert all(not np.array_equal(unseen.read(0), seen.read(number)) for number in range(10))


def test_blocks_and_channels_are_drawn_apart():
    """With one key, the draws of the channels would be the first ones of the blocks."""
    keys = jax.random.split(jax.random.key(0), 200)
    draws = jax.vmap(lambda key: disrupted_recon.block_mask(disrupted_recon.block_key(key), (32, 32, 32), 0.5))(keys)
    channels = jax.vmap(lambda key: disrupted_recon.channel_mask(key, (1, 1, 1, 8), 0.5, "sample"))(keys)
    blocks = np.asarray(draws[:, ::16, ::16, ::16, 0]).reshape(len(keys), -1)
    agree = (blocks == np.asarray(channels).reshape(len(keys), -1)).mean()
    assert 0.4 < agree < 0.6


def relative(found, exact):
    difference = np.asarray(found, np.float64) - np.asarray(exact, np.float64)
    return np.sqrt(np.square(difference).mean() / np.square(np.asarray(exact, np.float64)).mean())


def test_gradients_of_biases_and_scales_are_summed_in_float32():
    rng = np.random.default_rng(0)
    x, weights = (jnp.asarray(rng.standard_normal((4, 4096, 8)), jnp.bfloat16) for _ in range(2))
    for function, exact in (
        (layers.shift, np.asarray(weights, np.float32).sum((0, 1))),
        (layers.scaled, (np.asarray(weights, np.float32) * np.asarray(x, np.float32)).sum((0, 1))),
    ):
        loss = lambda own, function=function: (function(x, own) * weights).astype(jnp.float32).sum()
        assert relative(jax.grad(loss)(jnp.ones(8)), exact) < 0.01, function


def test_a_depthwise_convolution_in_bfloat16_adds_in_float32():
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((2, 14, 14, 8)), rng.standard_normal((7, 7, 1, 8))
    low = jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16)
    exact = convolution.depthwise(*(array.astype(jnp.float32) for array in low))
    assert relative(convolution.depthwise(*low).astype(jnp.float32), exact) < 0.003
