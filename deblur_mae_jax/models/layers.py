"""Transformer parts with PyTorch's parameter names (timm's `Block`)."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

ATTENTIONS = ("xla", "cudnn")
xavier = nn.initializers.xavier_uniform()


def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, as PyTorch computes it.

    Written with erf rather than `jax.nn.gelu(approximate=False)`, whose erfc takes twice as long on
    a CPU (forward and backward) for the same values.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.asarray(np.sqrt(0.5), x.dtype)))


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`(M, K) @ (K, N)`, with the gradient of the kernel computed in the kernel's own layout.

    JAX's rule computes the transposed gradient and transposes it back. GPU and TPU compilers fold
    that away; the CPU compiler copies every weight gradient, a quarter of a ViT-B step.
    """
    return jax.lax.dot_general(x, kernel, (((1,), (0,)), ((), ())))


def _matmul_fwd(x, kernel):
    return matmul(x, kernel), (x, kernel)


def _matmul_bwd(residuals, grad):
    x, kernel = residuals
    return (
        jax.lax.dot_general(grad, kernel, (((1,), (1,)), ((), ()))),
        jax.lax.dot_general(x, grad, (((0,), (0,)), ((), ()))),
    )


matmul.defvjp(_matmul_fwd, _matmul_bwd)


def _dot_general(x, kernel, dimension_numbers, **_):
    """`matmul` in the form `nn.Dense` asks for: the last axis of `x` with the first of `kernel`."""
    assert dimension_numbers == (((x.ndim - 1,), (0,)), ((), ())) and kernel.ndim == 2
    out = matmul(x.reshape(-1, x.shape[-1]), kernel)
    return out.reshape(*x.shape[:-1], kernel.shape[-1])


def dense(features: int, dtype: Any, name: str | None = None) -> nn.Dense:
    """Linear layer, Xavier-uniform as in MAE."""
    return nn.Dense(features, kernel_init=xavier, dtype=dtype, dot_general=_dot_general, name=name)


class Attention(nn.Module):
    """Multi-head self-attention with a fused qkv projection, rows [q; k; v], head-major."""

    num_heads: int
    dtype: Any = jnp.float32
    implementation: str = "xla"

    @nn.compact
    def __call__(self, x):
        B, L, D = x.shape
        qkv = dense(3 * D, self.dtype, "qkv")(x)
        q, k, v = jnp.moveaxis(qkv.reshape(B, L, 3, self.num_heads, D // self.num_heads), 2, 0)
        # Kept only where a caller asks for it (attention maps of the report).
        self.sow("intermediates", "query_key", (q, k))
        attend: Any = jax.nn.dot_product_attention
        x = attend(q, k, v, implementation=self.implementation)
        return dense(D, self.dtype, "proj")(x.reshape(B, L, D))


class Mlp(nn.Module):
    """Two dense layers with a GELU between them."""

    hidden_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        D = x.shape[-1]
        x = gelu(dense(self.hidden_dim, self.dtype, "fc1")(x))
        return dense(D, self.dtype, "fc2")(x)


def layer_norm(name: str, dtype: Any) -> nn.LayerNorm:
    """LayerNorm with the ViT's eps; statistics are float32 whatever `dtype` is."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)


class Block(nn.Module):
    """Pre-norm transformer block.

    scale `(B, 2)`: factors of the two residual branches of each example, for stochastic depth.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    implementation: str = "xla"

    @nn.compact
    def __call__(self, x, scale=None):
        def scaled(branch, number):
            return branch if scale is None else branch * scale[:, number, None, None]

        attn = Attention(self.num_heads, self.dtype, self.implementation, name="attn")
        x = x + scaled(attn(layer_norm("norm1", self.dtype)(x)), 0)
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), self.dtype, name="mlp")
        return x + scaled(mlp(layer_norm("norm2", self.dtype)(x)), 1)


class BatchNorm(nn.Module):
    """PyTorch's BatchNorm1d without affine parameters, over the first axis of `(B, D)`.

    Normalises by the biased variance, keeps the unbiased one: Flax's keeps the biased one. Running
    statistics are entries of the parameter tree that no optimiser touches; in training the second
    result holds their new values, else it is empty.
    """

    epsilon: float = 1e-6
    momentum: float = 0.1  # weight of the newest batch, as PyTorch counts it

    @nn.compact
    def __call__(self, x, train: bool):
        D = x.shape[-1]
        mean = self.param("running_mean", nn.initializers.zeros, (D,))
        var = self.param("running_var", nn.initializers.ones, (D,))
        new = {}
        if train:
            batch_mean, batch_var = x.mean(axis=0), x.var(axis=0)
            m, unbias = self.momentum, x.shape[0] / max(x.shape[0] - 1, 1)
            new = {
                "running_mean": (1 - m) * mean + m * batch_mean,
                "running_var": (1 - m) * var + m * unbias * batch_var,
            }
            mean, var = batch_mean, batch_var
        mean, var = jax.lax.stop_gradient(mean), jax.lax.stop_gradient(var)
        return (x - mean) / jnp.sqrt(var + self.epsilon), jax.lax.stop_gradient(new)
