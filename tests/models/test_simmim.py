"""SimMIM's networks: masked places are not seen, the order of predicted pixels, the loss, BEiT's positions."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from deblur_mae_jax import network as networks
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline.keys import stream_keys
from deblur_mae_jax.models import beit, masking, mim
from deblur_mae_jax.pretrained import inherit

NETWORKS = ("simmim", "simmim:beit", "simmim_swin", "simmim:vit,levels")


def built(name, **overrides):
    """The network, with parameters that are all random."""
    net = networks.build(inherit.resolve(tiny.config(name, **overrides))[0])
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda x: (np.asarray(x) + 0.1 * rng.standard_normal(x.shape)).astype(np.float32), jax.jit(net.init)()
    )
    return net, params


def inputs(net, count=2):
    rng = np.random.default_rng(1)
    side = net.model.image_size
    images = rng.standard_normal((count, side, side, net.model.in_chans)).astype(np.float32)
    return images, rng.random((count, math.prod(net.model.mask_grid))).astype(np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_patches_are_not_seen_and_the_others_are(name):
    net, params = built(name)
    images, noise = inputs(net)
    level = jnp.ones(2, jnp.int32)
    predict = jax.jit(lambda x: net.model.apply({"params": params}, x, noise=noise, mask_ratio=0.5, level=level))
    pred, out = predict(images)
    mask = np.asarray(masking.spread(out["mask"], net.model.mask_grid, net.model.mask_size))
    assert 0 < mask.mean() < 1 and pred.shape == masking.patchify(images, net.model.mask_size).shape
    np.testing.assert_array_equal(pred, predict(np.where(mask > 0, 7.0, images))[0])
    assert np.abs(pred - predict(np.where(mask > 0, images, images + 0.1))[0]).max() > 1e-4


def test_pixels_are_shuffled_as_by_pytorch():
    """Channel c * r * r + i * r + j of a place is the pixel (i, j) of channel c (numbers by hand, r = 2, C = 3)."""
    x = np.arange(2 * 12, dtype=np.float32).reshape(1, 1, 2, 12)
    image = np.asarray(mim.shuffled(x, 2, 3))
    assert image.shape == (1, 2, 4, 3)
    for c in range(3):
        np.testing.assert_array_equal(image[0, :, :2, c], np.arange(4).reshape(2, 2) + 4 * c)
        np.testing.assert_array_equal(image[0, :, 2:, c], np.arange(4).reshape(2, 2) + 4 * c + 12)


@pytest.mark.parametrize("name", tiny.others_slow(["simmim", "simmim_swin"], "simmim"))
def test_the_loss_is_simmims(name):
    """Its formula, in float64: the absolute error on masked pixels over their number and that of the channels."""
    net, params = built(name, model__in_chans=3)
    images, _ = inputs(net)
    targets = images + np.random.default_rng(2).standard_normal(images.shape).astype(np.float32)
    keys = stream_keys(0, 0, jnp.arange(2))
    loss = jax.jit(net.task.loss)
    per_image, out = loss(params, {"inputs": images, "targets": targets}, keys)
    mask = np.asarray(masking.spread(out["mask"], net.model.mask_grid, net.model.mask_size), np.float64)
    pred = np.asarray(masking.unpatchify(out["pred"], net.model.mask_size, 3), np.float64)
    want = (np.abs(pred - targets) * mask).sum() / (mask.sum() + 1e-5) / 3
    assert abs(float(per_image.mean()) - want) < 1e-5
    assert int(out["mask"][0].sum()) == int(np.ceil(0.6 * math.prod(net.model.mask_grid)))


@pytest.mark.parametrize(("ratio", "message"), [(0.0, "masks no patch"), (0.99, "leaves none of the")])
def test_all_or_nothing_masked_is_refused(ratio, message):
    with pytest.raises(UserError, match=message):
        networks.build(inherit.resolve(tiny.config("simmim", task__mask_ratio=ratio))[0])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("simmim", {"model__mask_size": 6}, "mask_size=6 must divide config.image_size=16 and be a multiple of 4"),
        ("simmim", {"model__positions": "learned"}, "Choices: relative_shared, sincos"),
        ("simmim", {"task__error": "huber"}, "config.task.error.*Choices: absolute, squared"),
        ("simmim:beit", {"model__attention": "by_image"}, "relative positions add a bias.*Choices: auto, xla"),
        ("simmim_swin",
         {"model__conditioning": "token", "task__degrade": "blur.gaussian_levels(max_sigma=1, step=0.5)"},
         "a Swin has no tokens"),
        ("beit", {"model__layer_scale": -1.0}, "layer_scale=-1.0 must be 0"),
    ],
)  # fmt: skip
def test_invalid_settings_are_refused_by_name(name, changes, message):
    with pytest.raises(UserError, match=message):
        networks.build(inherit.resolve(tiny.config(name, **changes))[0], 2 if name == "beit" else 0)


@pytest.mark.parametrize(("prefix", "grid"), [(1, (3, 3)), (2, (3, 3)), (1, (2, 4))])
def test_every_pair_of_patches_has_the_row_of_its_offset(prefix, grid):
    height, width = grid
    index, offsets = beit.relative_index(grid, prefix), (2 * height - 1) * (2 * width - 1)
    for a in range(height * width):
        for b in range(height * width):
            rows, columns = a // width - b // width, a % width - b % width
            row = (rows + height - 1) * (2 * width - 1) + columns + width - 1
            assert index[prefix + a, prefix + b] == row
    assert (index[:prefix, prefix:] == offsets).all() and (index[prefix:, :prefix] == offsets + 1).all()
    assert (index[:prefix, :prefix] == offsets + 2).all()


def test_stochastic_depth_is_for_training_only():
    net, params = built("simmim", model__drop_path=0.9, model__depth=4)
    images, _ = inputs(net, 8)
    keys, loss = stream_keys(0, 0, jnp.arange(8)), jax.jit(net.task.loss)
    batch = {"inputs": images, "targets": images}
    at_rest = loss(params, batch, keys)[0]
    other = loss(params, batch, keys | {"drop_path": keys["mask"]})[0]
    np.testing.assert_array_equal(at_rest, other)
    training = loss(params, batch | {"progress": jnp.float32(0)}, keys)[0]
    assert np.abs(training - at_rest).max() > 1e-4
