"""The parts with gradients or orders of work of our own, against the plain ones of JAX, Flax and Optax."""

import sys
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import layers, vit_mae
from deblur_mae_jax.training import optimizer


def with_gradients(function, *inputs):
    """What it gives, and the gradients of a weighted sum of it."""
    out, back = jax.vjp(function, *inputs)
    weight = jnp.cos(jnp.arange(out.size, dtype=jnp.float32)).reshape(out.shape)
    return [out, *back(weight.astype(out.dtype))]


def assert_same(found, wanted, tolerance=2e-5):
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        scale = float(jnp.abs(b.astype(jnp.float32)).max()) + 1e-6
        error = jnp.abs(a.astype(jnp.float32) - b.astype(jnp.float32)).max() / scale
        assert float(error) < tolerance


@pytest.mark.parametrize(
    "dtype,tolerance", tiny.others_slow([("float32", 2e-5), ("bfloat16", 2e-2)], ("float32", 2e-5))
)
@pytest.mark.parametrize("cache", [0, layers.CACHED_SCORES])
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
    plain = with_gradients(lambda *x: layers.attend(*x, "xla"), *qkv)
    whole, layers.CACHED_SCORES = layers.CACHED_SCORES, cache
    try:
        assert_same(with_gradients(lambda *x: layers.attend(*x), *qkv), plain, tolerance)
    finally:
        layers.CACHED_SCORES = whole


@pytest.mark.parametrize("dtype,tolerance", [("float32", 2e-5), ("bfloat16", 3e-2)])
def test_queries_keys_and_values_from_three_products_are_those_of_one(monkeypatch, dtype, tolerance):
    module = layers.Attention(4, jnp.dtype(dtype), "xla")
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 17, 32)), dtype)
    params = module.init(jax.random.key(0), x)
    loss = lambda p, x: (module.apply(p, x).astype(jnp.float32) ** 2).sum()
    one = jax.value_and_grad(loss, argnums=(0, 1))(params, x)
    monkeypatch.setattr(layers, "KERNELS", ("xla",))
    assert jax.tree.map(jnp.shape, module.init(jax.random.key(0), x)) == jax.tree.map(jnp.shape, params)
    three = jax.value_and_grad(loss, argnums=(0, 1))(params, x)
    assert_same(jax.tree.leaves(three), jax.tree.leaves(one), tolerance)


@pytest.mark.parametrize(
    "capability,dtype,width,there",
    [
        ("9.0", "bfloat16", 64, True),
        ("8.0", "float16", 32, True),
        ("10.0", "bfloat16", 32, True),
        ("7.0", "bfloat16", 64, False),
        ("gfx942", "bfloat16", 64, False),
        ("9.0", "float32", 64, False),
        ("9.0", "bfloat16", 20, False),
        ("9.0", "bfloat16", 256, False),
    ],
)
def test_auto_chooses_cudnn_where_its_kernel_is(monkeypatch, capability, dtype, width, there):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(compute_capability=capability)])
    assert layers.chosen("auto", dtype, width) == ("cudnn" if there else "xla")


def test_attention_by_image_does_not_keep_the_scores():
    B, L, heads, width = 16, 198, 4, 8
    assert 4 * B * heads * L * L > layers.CACHED_SCORES
    qkv = [jax.ShapeDtypeStruct((B, L, heads, width), jnp.float32)] * 3

    def kept(name):
        back = jax.eval_shape(lambda *x: jax.vjp(lambda *y: layers.attend(*y, name), *x)[1], *qkv)
        return sum(x.size for x in jax.tree.leaves(back))

    assert kept("xla") > B * heads * L * L
    assert kept("by_image") <= 4 * B * L * heads * width


@pytest.mark.parametrize("dtype,tolerance", [("float32", 2e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("shape", [(2, 5, 48), (3, 8)])
def test_layer_norm_is_flaxs(shape, dtype, tolerance):
    rng = np.random.default_rng(0)
    x = jnp.asarray(3 + 2 * rng.standard_normal(shape), dtype)
    scale, bias = (jnp.asarray(rng.standard_normal(shape[-1]), jnp.float32) for _ in range(2))
    theirs = nn.LayerNorm(epsilon=1e-6, dtype=jnp.dtype(dtype), use_fast_variance=False)

    def apply(module):
        return lambda x, s, b: module.apply({"params": {"scale": s, "bias": b}}, x)

    ours = layers.LayerNorm(jnp.dtype(dtype))
    assert_same(
        with_gradients(apply(ours), x, scale, bias),
        with_gradients(apply(theirs), x, scale, bias),
        tolerance,
    )


def test_adam_is_optaxs_bit_by_bit():
    rng = np.random.default_rng(0)
    params = {"w": jnp.asarray(rng.standard_normal((4, 3)), jnp.float32)}
    pair = optimizer.scale_by_adam(0.9, 0.95, 1e-8), optax.scale_by_adam(0.9, 0.95, 1e-8)
    states = [tx.init(params) for tx in pair]
    for _ in range(3):
        grads = {"w": jnp.asarray(rng.standard_normal((4, 3)), jnp.float32)}
        done = [tx.update(grads, s, params) for tx, s in zip(pair, states, strict=True)]
        states = [state for _, state in done]
        for a, b in zip(*map(jax.tree.leaves, done), strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_fresh_state_of_adam_can_be_donated():
    params = {"w": jnp.ones((4, 3))}
    tx = optimizer.adamw(lambda _: 0.1)
    step = jax.jit(lambda s, g, p: tx.update(g, s, p)[1], donate_argnums=0)
    state = step(tx.init(params), params, params)  # no array stands in it twice
    assert float(state[0].mu["w"][0, 0]) == pytest.approx(0.1)


@pytest.mark.parametrize("make", [optimizer.adamw, optimizer.lars])
def test_every_optimiser_keeps_its_state_where_a_step_is_unhealthy(make):
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
    tx = optimizer.only(make(lambda _: 0.1), lambda name: name == "w")
    good, bad = (jax.tree.map(lambda p, v=v: jnp.full_like(p, v), params) for v in (0.5, np.nan))
    _, state = tx.update(good, tx.init(params), params, healthy=jnp.asarray(True))
    _, frozen = tx.update(bad, state, params, healthy=jnp.asarray(False))
    _, moved = tx.update(good, state, params, healthy=jnp.asarray(True))
    pairs = list(zip(jax.tree.leaves(state), jax.tree.leaves(frozen), strict=True))
    assert pairs and all(np.array_equal(a, b) for a, b in pairs)
    changed = zip(jax.tree.leaves(state), jax.tree.leaves(moved), strict=True)
    assert not all(np.array_equal(a, b) for a, b in changed)


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
    mesh = jax.sharding.AbstractMesh((1, devices), layers.sharding.AXES)
    monkeypatch.setattr(layers.sharding, "make_mesh", lambda: mesh)
    q = jnp.zeros((images, 5, 2, 8))
    assert layers.attend(q, q, q, "triton").shape == q.shape
    where = asked.pop("q_sharding")
    assert asked == {"implementation": "triton"}
    assert (where is not None) == divided
    assert not divided or where.spec == jax.sharding.PartitionSpec(layers.sharding.AXES)


@pytest.mark.parametrize("rows", [6, 7])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_linear_layer_is_flax_s(dtype, rows):
    """The same parameters, values and gradients as `nn.Dense`; in bfloat16 the gradients keep float32."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((2, rows, 16)), dtype)
    ours, flax = layers.Dense(24, jnp.dtype(dtype)), nn.Dense(24, kernel_init=layers.xavier, dtype=jnp.dtype(dtype))
    params = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, flax.init(jax.random.key(0), x))
    params["params"]["bias"] = jnp.asarray(rng.standard_normal(24), jnp.float32)
    towards = jnp.asarray(rng.standard_normal((2, rows, 24)), dtype)

    def value_and_grads(layer):
        out, back = jax.vjp(lambda p, x: layer.apply(p, x), params, x)
        return out, back(towards)

    got, want = jax.jit(lambda: value_and_grads(ours))(), value_and_grads(flax)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        close = {"float32": 1e-5, "bfloat16": 0.1}[dtype]  # Flax rounds the sums of its gradients
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), atol=close)
    exact = np.asarray(x, np.float64).reshape(-1, 16).T @ np.asarray(towards, np.float64).reshape(-1, 24)
    np.testing.assert_allclose(got[1][0]["params"]["kernel"], exact, atol=2e-5)
    exact = np.asarray(towards, np.float64).reshape(-1, 24).sum(axis=0)
    np.testing.assert_allclose(got[1][0]["params"]["bias"], exact, atol=2e-5)


def test_a_product_may_be_transposed_in_bfloat16():
    """XLA would fold the transposition into the product, which it then could not run."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 32)), jnp.bfloat16)
    kernel = jnp.ones((32, 48))
    got = jax.jit(lambda x: layers.matmul(x, kernel).T)(x)
    np.testing.assert_array_equal(got, layers.matmul(x, kernel).T)
    grads = jax.jit(jax.grad(lambda k: (layers.matmul(x, k.T) ** 2).sum()))(kernel.T)
    assert grads.shape == (48, 32) and grads.dtype == jnp.float32
