"""Inputs whose sides differ: every network takes them, through crops, masks, positions, windows and losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
import tiny_volumes
from hypothesis import given, settings
from hypothesis import strategies as st

from deblur_mae_jax import network as networks
from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline import crop_resize
from deblur_mae_jax.input_pipeline.keys import stream_keys
from deblur_mae_jax.input_pipeline.volumes import VolumeInputs, first_voxel
from deblur_mae_jax.models import position, swin2d
from deblur_mae_jax.pretrained import inherit
from deblur_mae_jax.reports import page

TRAINED = [name for name in tiny.CONFIGS if tiny.identity(name).kind]
WORDS = ["upernet:vit", "upernet:beit", "upernet:swin", "upernet:convvit", "simmim:beit"]


def built(name, size):
    """The network of a config, shrunk, with these sides."""
    identity = tiny.identity(name)
    if identity.axes == 2:
        config = tiny.config(name, image_size=size)
    else:
        more = {"init_from": ""} | ({"augment__rotate_probability": 0.0} if identity.supervised else {})
        of = tiny_volumes.segmentation if identity.supervised else tiny_volumes.config_of
        config = of(name, image_size=size, **more)
    return networks.build(inherit.resolve(config)[0], 3 if identity.supervised else 0)


def longer(name):
    """The side of a config's input, and twice as much along one axis: the second of an image, the first of a volume."""
    if tiny.identity(name).axes == 3:
        return (64, 32, 32)
    side = tiny.config(name).image_size or 32
    return (side, 2 * side)


def examples_of(net, count=2):
    space = (40, 56) if net.axes == 2 else (40, 24, 36)
    image = jax.ShapeDtypeStruct((count, *space, net.inputs.in_chans), jnp.uint8 if net.axes == 2 else jnp.float32)
    out = {"image": image, "size": jax.ShapeDtypeStruct((count, net.axes), jnp.int32)}
    if net.kind == "segment":
        out["mask"] = jax.ShapeDtypeStruct((count, *space), jnp.uint8)
    if net.kind == "classify":
        out["label"] = jax.ShapeDtypeStruct((count,), jnp.int32)
    if net.axes == 3 and net.kind == "reconstruct":
        out["modality"] = jax.ShapeDtypeStruct((count,), jnp.int32)
    return out


@pytest.mark.parametrize(
    "name", tiny.others_slow([*TRAINED, *WORDS], "d2mae_thyroid", "swin", "dae_ct_mr", "segment_volumes", "upernet:vit")
)
def test_every_network_is_trained_on_inputs_that_are_not_square(name):
    size = longer(name)
    net = built(name, size)

    def step(params, examples):
        keys = stream_keys(0, 0, jnp.arange(2))
        batch = net.inputs.train(examples, keys)
        assert batch["inputs"].shape == (2, *size, net.inputs.in_chans)
        if net.kind == "segment":
            assert batch["mask"].shape == (2, *size)
        per_image, _ = net.task.loss(params, batch | {"progress": jnp.zeros(())}, keys)
        return per_image

    params = jax.eval_shape(net.init)
    assert jax.eval_shape(step, params, examples_of(net)).shape == (2,)
    assert net.flops_per_image > 0


@settings(deadline=None, max_examples=12)
@given(
    name=st.sampled_from(["mae_thyroid", "swin", "resnet", "convnext", "simmim", "beit"]),
    rows=st.integers(1, 3), columns=st.integers(1, 3),
)  # fmt: skip
def test_operations_do_not_depend_on_which_side_is_longer(name, rows, columns):
    base = tiny.config(name).image_size or 32
    one, other = (
        built(name, size).forward_flops for size in ((rows * base, columns * base), (columns * base, rows * base))
    )
    assert one == pytest.approx(other)


def test_equal_sides_are_one_number():
    assert sides.checked((224, 224), 2) == 224 and sides.checked([96, 96, 64], 3) == (96, 96, 64)
    assert built("mae_thyroid", (16, 16)).model == built("mae_thyroid", 16).model
    assert sides.written(224) == "224" and sides.written((96, 96, 32)) == "96 x 96 x 32"


@pytest.mark.parametrize(
    ("name", "size", "message"),
    [
        (
            "mae_thyroid",
            (16, 16, 32),
            r"image_size=\(16, 16, 32\) must be one number of at least 16 pixels, or 2 of them",
        ),
        ("mae_thyroid", (16, 8), r"image_size=\(16, 8\) must be one number of at least 16 pixels"),
        ("mae_thyroid", "wide", "image_size='wide' must be one number"),
        ("mae_thyroid", 16.5, r"image_size=16.5 must be one number"),
        ("mae_thyroid", (16, 30), r"patch_size=4 does not divide config.image_size=\(16, 30\). Choices: "),
        ("dae_ct_mr", (32, 48, 32), r"image_size=\(32, 48, 32\): every side must be a multiple of 32"),
        ("swin_ssl_ct_mr", (32, 32, 64), "turns crops by 90 degrees in the plane of the last two axes"),
        ("swin", (32, 34), r"image_size=\(32, 34\): every side must be a multiple of 4"),
    ],
)
def test_sides_that_do_not_fit_are_refused_by_name(name, size, message):
    with pytest.raises(UserError, match=message):
        built(name, size)


def test_turns_need_equal_sides():
    config = tiny_volumes.segmentation(image_size=(32, 64, 32), augment__rotate_probability=0.1)
    with pytest.raises(UserError, match=r"rotate_probability=0.1 turns crops .* config.image_size=\(32, 64, 32\)"):
        networks.build(inherit.resolve(config)[0], 3)


def test_depth_taken_for_channels_needs_a_cube():
    config = tiny_volumes.config_of("dae_ct_mr", image_size=(32, 64, 32), model__layout="as_coded")
    with pytest.raises(UserError, match=r"layout=as_coded takes depth for channels, so it needs a cube"):
        networks.build(config)


def test_positions_of_a_row_and_a_column_are_those_of_the_square():
    """Row i and column j of any grid have the values of row i and column j of a larger square."""
    square = position.sincos_2d(16, 9, 0).reshape(9, 9, 16)
    np.testing.assert_array_equal(position.sincos_2d(16, (4, 7), 0).reshape(4, 7, 16), square[:4, :7])


def test_a_table_is_resized_along_the_side_that_changes():
    table = np.random.default_rng(0).standard_normal((1, 1 + 4 * 6, 5)).astype(np.float32)
    same = position.resize_table(table, (4, 6), (4, 6))
    assert same is table
    twice = position.resize_table(position.resize_table(table, (4, 6), (4, 9)), (4, 9), (7, 9))
    np.testing.assert_allclose(position.resize_table(table, (4, 6), (7, 9)), twice, atol=1e-5)


def test_a_window_covers_a_short_side_and_is_shifted_along_the_other():
    assert swin2d.fitted((5, 20), 7, 3) == ((5, 7), (0, 3))
    number = swin2d.regions((5, 21), (5, 7), (0, 3))
    assert number.shape == (3, 35)
    assert [len(set(window)) for window in number] == [1, 1, 2]  # the last window holds tokens of both ends


@settings(deadline=None)
@given(height=st.integers(20, 400), width=st.integers(20, 400), rows=st.integers(16, 300), columns=st.integers(16, 300))
def test_the_central_view_keeps_proportions_and_stays_inside(height, width, rows, columns):
    box = crop_resize.centre_crop(jnp.asarray([height, width]), (rows, columns))
    top, left, tall, wide = (float(x) for x in box[:4])
    assert tall / rows == pytest.approx(wide / columns, rel=2 / min(rows, columns))
    assert top >= -1e-3 and left >= -1e-3 and top + tall <= height + 1e-2 and left + wide <= width + 1e-2


def test_random_crops_have_the_proportions_of_the_input_on_average():
    net = built("mae_thyroid", (16, 64))
    keys = stream_keys(0, 0, jnp.arange(400))
    seen = []

    def keep(examples, boxes, flips):
        seen.append(boxes)
        return jnp.ones(400, jnp.int32)

    examples = {"image": jnp.zeros((400, 8, 8, 1), jnp.uint8), "size": jnp.tile(jnp.asarray([[300, 1200]]), (400, 1))}
    net.inputs.train(examples, keys, keep)
    ratio = np.asarray(seen[0].width / seen[0].height)
    assert ratio.min() > 2.95 and ratio.max() < 5.4 and abs(np.log(ratio / 4).mean()) < 0.03


def test_a_flat_crop_of_a_volume_is_cut_where_it_was_drawn():
    net = built("segment_volumes", (32, 64, 32))
    inputs = net.inputs
    assert isinstance(inputs, VolumeInputs) and inputs.sides == (32, 64, 32)
    volume = np.random.default_rng(0).random((50, 70, 34, 1)).astype(np.float32)
    examples = {"image": jnp.asarray(volume)[None], "size": jnp.asarray([[50, 70, 34]])}
    got = inputs.evaluate(examples, stream_keys(0, 0, jnp.arange(1)))["inputs"][0]
    np.testing.assert_array_equal(got, volume[9:41, 3:67, 1:33])
    drawn = np.asarray([[0.99, 0.5, 0.0]], np.float32)
    start = first_voxel(drawn, np.asarray([[50, 70, 34]], np.int32), (32, 64, 32), np)
    np.testing.assert_array_equal(start, [[18, 3, 0]])


def test_a_small_volume_is_centred_in_a_flat_crop():
    net = built("segment_volumes", (32, 64, 32))
    volume = np.random.default_rng(0).random((20, 70, 30, 1)).astype(np.float32)
    examples = {"image": jnp.asarray(volume)[None], "size": jnp.asarray([[20, 70, 30]])}
    got = np.asarray(net.inputs.evaluate(examples, stream_keys(0, 0, jnp.arange(1)))["inputs"][0])
    np.testing.assert_array_equal(got[6:26, :, 1:31], volume[:, 3:67])
    assert not got[:6].any() and not got[26:].any() and not got[:, :, 31:].any()


def test_pictures_of_wide_images_are_whole():
    wide = np.zeros((48, 96, 1))
    wide[:, -4:] = 255
    picture = np.asarray(page.sheet([[wide, wide]], ["a", "b"], [""]))
    white = (picture[40:100] == 255).all(axis=(0, 2))
    assert picture.shape[1] > 2 * 2 * 144 and (np.diff(np.flatnonzero(white)) > 1).sum() == 2  # gaps: margin, a, b
