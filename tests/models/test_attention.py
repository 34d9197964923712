"""Attention: every implementation against XLA's."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from gradients import assert_same, with_gradients
from hypothesis import given, settings
from hypothesis import strategies as st

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import attention, layers, vit_mae


@pytest.mark.parametrize(
    "dtype,tolerance", tiny.others_slow([("float32", 2e-5), ("bfloat16", 2e-2)], ("float32", 2e-5))
)
@pytest.mark.parametrize("cache", [0, attention.CACHED_SCORES])
@settings(max_examples=2, deadline=None)
@given(
    batch=st.integers(1, 3),
    tokens=st.sampled_from([1, 2, 17, 51]),
    heads=st.sampled_from([1, 3]),
    width=st.sampled_from([8, 32]),
    seed=st.integers(0, 99),
)
def test_attention_is_the_same_in_every_order(dtype, tolerance, cache, batch, tokens, heads, width, seed):
    draw = np.random.default_rng(seed).standard_normal((3, batch, tokens, heads, width))
    qkv = [jnp.asarray(x, dtype) for x in draw]
    plain = with_gradients(lambda *x: attention.attend(*x, "xla"), *qkv)
    whole, attention.CACHED_SCORES = attention.CACHED_SCORES, cache
    try:
        assert_same(with_gradients(lambda *x: attention.attend(*x), *qkv), plain, tolerance)
    finally:
        attention.CACHED_SCORES = whole


@pytest.fixture
def stand_in_for_cudnn(monkeypatch):
    """No GPU here: XLA's attention with the arguments that cuDNN's kernel gets, and with what JAX demands of them."""
    plain, asked = jax.nn.dot_product_attention, []

    def kernel(q, k, v, implementation, **options):
        assert implementation in ("cudnn", "xla") and (implementation == "xla" or q.shape[1] % 2 == k.shape[1] % 2 == 0)
        asked.append(implementation)
        return plain(q, k, v, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    return asked


@pytest.mark.parametrize(("queries", "keys"), tiny.others_slow([(6, 10), (7, 10), (6, 11), (7, 11)], (7, 10), (6, 11)))
def test_cudnn_gets_even_numbers_of_tokens(stand_in_for_cudnn, queries, keys):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.standard_normal((2, n, 3, 8)), jnp.float32) for n in (queries, keys, keys))
    plain = with_gradients(lambda *x: attention.attend(*x, "xla"), q, k, v)
    assert_same(with_gradients(lambda *x: attention.attend(*x, "cudnn"), q, k, v), plain, 2e-6)
    assert "cudnn" in stand_in_for_cudnn


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [16, 17])
def test_a_block_with_cudnn_is_the_plain_one(stand_in_for_cudnn, tokens):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, tokens, 32)), jnp.float32)
    blocks = {name: layers.Block(4, implementation=name) for name in ("xla", "cudnn")}
    params = blocks["xla"].init(jax.random.key(0), x)

    def run(name):
        loss = lambda p, x: (blocks[name].apply(p, x) ** 2).sum()
        _, kept = blocks[name].apply(params, x, mutable=["intermediates"])
        return jax.tree.leaves((jax.value_and_grad(loss, argnums=(0, 1))(params, x), kept))

    assert_same(run("cudnn"), run("xla"), 1e-5)
    assert "cudnn" in stand_in_for_cudnn


def test_attention_by_image_does_not_keep_the_scores():
    B, L, heads, width = 16, 198, 4, 8
    assert 4 * B * heads * L * L > attention.CACHED_SCORES
    qkv = [jax.ShapeDtypeStruct((B, L, heads, width), jnp.float32)] * 3

    def kept(name):
        back = jax.eval_shape(lambda *x: jax.vjp(lambda *y: attention.attend(*y, name), *x)[1], *qkv)
        return sum(x.size for x in jax.tree.leaves(back))

    assert kept("xla") > B * heads * L * L
    assert kept("by_image") <= 4 * B * L * heads * width


@pytest.mark.parametrize(
    "name,needs",
    [
        ("cudnn", r"cudnn needs an NVIDIA GPU.*bfloat16.*auto"),
        ("triton", r"triton needs an NVIDIA GPU.*Tokamax.*auto"),
    ],
)
def test_kernels_say_what_they_need(name, needs):
    with pytest.raises(UserError, match=needs):
        vit_mae.Model("Ti", image_size=32, patch_size=8, attention=name)


@pytest.mark.parametrize("devices,images,divided", [(1, 4, False), (4, 8, True), (4, 6, False)])
def test_every_device_gets_its_own_images_for_a_kernel(monkeypatch, devices, images, divided):
    """No GPU here: what the kernel is asked for, not what it does."""
    asked = {}

    def kernel(q, k, v, **options):
        asked.update(options)
        return q

    monkeypatch.setitem(sys.modules, "tokamax", types.SimpleNamespace(dot_product_attention=kernel))
    mesh = jax.sharding.AbstractMesh((1, devices), attention.sharding.AXES)
    monkeypatch.setattr(attention.sharding, "make_mesh", lambda: mesh)
    q = jnp.zeros((images, 5, 2, 8))
    assert attention.attend(q, q, q, "triton").shape == q.shape
    where = asked.pop("q_sharding")
    assert asked == {"implementation": "triton"}
    assert (where is not None) == divided
    assert not divided or where.spec == jax.sharding.PartitionSpec(attention.sharding.AXES)
