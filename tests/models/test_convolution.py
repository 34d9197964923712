"""Convolutions as they are computed on CPUs, against XLA's own."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deblur_mae_jax.models import conv3d, conv3d_segments, convolution, winograd

CASES = {  # side, stride, padding, depthwise
    "one pixel": (1, 1, 0, False), "one pixel, every second": (1, 2, 0, False), "patches": (4, 4, 0, False),
    "halving": (2, 2, 0, False), "3 x 3": (3, 1, 1, False), "Winograd": (3, 1, 1, False),
    "Winograd, image by image": (3, 1, 1, False), "Winograd, two and two": (3, 1, 1, False),
    "3 x 3, every second": (3, 2, 1, False),
    "depthwise": (5, 1, 2, True), "large depthwise": (7, 1, 3, True), "depthwise, halving": (2, 2, 0, True),
}  # fmt: skip


@pytest.mark.parametrize("shape", [(3, 8, 12, 6), (2, 9, 5, 6)])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_those_of_a_convolution(monkeypatch, case, shape):
    if case.startswith("Winograd"):
        monkeypatch.setattr(convolution, "CHANNELS", 1)
        monkeypatch.setattr(convolution, "WORK", 1)
        at_once = {"Winograd": 2**20, "Winograd, image by image": 1, "Winograd, two and two": 60_000}
        monkeypatch.setattr(winograd, "AT_ONCE", at_once[case])
    side, stride, padding, depthwise = CASES[case]
    C, D = shape[-1], shape[-1] if depthwise else 10
    groups = C if depthwise else 1
    rng = np.random.default_rng(0)
    x = rng.standard_normal(shape).astype(np.float32)
    kernel = rng.standard_normal((side, side, C // groups, D)).astype(np.float32)

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )  # fmt: skip

    ours = lambda x, kernel: convolution.convolve(x, kernel, stride, padding, groups)
    with jax.default_matmul_precision("highest"):
        want, back = jax.vjp(plain, x, kernel)
        got, own = jax.jit(lambda x, kernel: jax.vjp(ours, x, kernel))(x, kernel)
        np.testing.assert_allclose(got, want, atol=2e-5)
        upstream = rng.standard_normal(want.shape).astype(np.float32)
        for a, b in zip(own(upstream), back(upstream), strict=True):
            np.testing.assert_allclose(a, b, atol=5e-5)


def test_batches_without_small_divisors_are_filled_up():
    assert winograd._groups(37, 16, 1024) == (3, 13)  # 37 images of 7 x 7, not one by one
    assert winograd._groups(32, 16, 1024) == (2, 16)
    assert winograd._groups(5, 16, 1024) == (1, 5)
    assert winograd._groups(37, 784, 128) == (37, 1)  # one image has tiles enough


def test_bfloat16_is_computed_in_float32(monkeypatch):
    monkeypatch.setattr(convolution, "CHANNELS", 1)
    monkeypatch.setattr(convolution, "WORK", 1)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, 6, 6, 8)), jnp.bfloat16)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 8, 4)), jnp.bfloat16)
    got = convolution.convolve(x, kernel, padding=1)
    want = winograd.convolve(x.astype(jnp.float32), kernel.astype(jnp.float32))
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


def test_parameters_are_those_of_flax():
    x = jnp.ones((1, 6, 6, 4))
    ours = convolution.Convolution(8, 3, padding=1).init(jax.random.key(0), x)
    flax = nn.Conv(8, (3, 3), padding=1).init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, ours, flax)


def test_images_of_a_batch_do_not_mix_in_a_loop():
    """Each device holds some images: the loop over places may not communicate."""
    x = jnp.ones((4, 6, 6, 8))
    loss = lambda kernel: convolution.depthwise(x, kernel).sum()
    per_image = jax.vmap(lambda x: jax.grad(lambda k: convolution.depthwise(x[None], k).sum())(jnp.ones((3, 3, 1, 8))))(
        x
    )
    np.testing.assert_allclose(jax.grad(loss)(jnp.ones((3, 3, 1, 8))), per_image.sum(0), rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 5, 6, 8, 1), (1, 4, 7, 12, 3)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_large_volumes_have_the_values_and_gradients_of_a_convolution(monkeypatch, shape, dtype):
    monkeypatch.setattr(conv3d_segments, "LARGE", 1)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(shape), dtype)
    kernel = jnp.asarray(rng.standard_normal((3, 3, 3, shape[-1], 5)), dtype)
    assert conv3d_segments.pays(x, kernel) and not conv3d_segments.pays(x[:, :, :, 1:], kernel)

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1, 1), [(1, 1)] * 3, dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
        )

    exact = lambda x, kernel: plain(x.astype(jnp.float32), kernel.astype(jnp.float32))
    want, back = jax.vjp(exact, x, kernel)
    upstream = jnp.asarray(rng.standard_normal(want.shape), dtype)
    close = {"atol": 1e-4} if dtype == jnp.float32 else {"rtol": 0.02, "atol": 0.3}
    for ours in (conv3d.convolve, conv3d_segments.convolve):
        got = jax.jit(ours)(x, kernel)
        assert got.dtype == dtype
        np.testing.assert_allclose(got.astype(np.float32), want, **close)
    gradients = jax.jit(lambda x, kernel, up: jax.vjp(conv3d.convolve, x, kernel)[1](up))(x, kernel, upstream)
    for a, b in zip(gradients, back(upstream.astype(jnp.float32)), strict=True):
        assert a.dtype == dtype
        np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), **close)


def test_patches_of_volumes_are_those_of_flax():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 6, 8, 3)), jnp.float32)
    ours, flax = conv3d.Patches(7, 2), nn.Conv(7, (2, 2, 2), (2, 2, 2), padding="VALID")
    params = ours.init(jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, flax.init(jax.random.key(0), x))
    np.testing.assert_allclose(ours.apply(params, x), flax.apply(params, x), atol=1e-5)


def test_a_kernel_of_one_voxel_is_a_product():
    x, kernel = jnp.ones((1, 3, 4, 5, 2)), jnp.arange(6.0).reshape(1, 1, 1, 2, 3)
    np.testing.assert_array_equal(conv3d.convolve(x, kernel), jnp.broadcast_to(kernel.sum(axis=3), (1, 3, 4, 5, 3)))
    assert conv3d.convolve(x, kernel, stride=2).shape == (1, 2, 2, 3, 3)
