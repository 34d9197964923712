"""The parts with gradients or orders of work of our own, against the plain ones of JAX, Flax and Optax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gradients import assert_same, with_gradients

from deblur_mae_jax.models import layers
from deblur_mae_jax.training import optimizer


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
