import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deblur_mae_jax.models import pooling


def plain(x):
    """XLA's maximum over windows."""
    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), border)


@settings(max_examples=8, deadline=None)
@given(
    rows=st.sampled_from([1, 2, 5, 8]), columns=st.sampled_from([1, 3, 6]),
    levels=st.sampled_from([2, 1000]), seed=st.integers(0, 99),
)  # fmt: skip
def test_maxima_and_gradients_are_those_of_xla_with_and_without_ties(rows, columns, levels, seed):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.integers(-levels, levels, (2, rows, columns, 3)), jnp.float32)
    wanted, back = jax.vjp(plain, x)
    found, our_back = jax.vjp(pooling.max_pool, x)
    weight = jnp.asarray(rng.standard_normal(wanted.shape), jnp.float32)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_allclose(our_back(weight)[0], back(weight)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_types_are_kept_and_what_is_not_a_number_is_not_hidden(dtype):
    x = jnp.zeros((1, 4, 4, 2), dtype).at[0, 2, 2, 0].set(jnp.nan)
    out, back = jax.vjp(pooling.max_pool, x)
    assert out.dtype == x.dtype and back(out)[0].dtype == x.dtype
    unknown = np.isnan(np.asarray(out, np.float32)).sum(axis=(0, 1, 2))
    assert unknown.tolist() == [1, 0]
