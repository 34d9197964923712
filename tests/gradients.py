"""Compare two ways to compute the same, forward and backward."""

import jax
import jax.numpy as jnp


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
