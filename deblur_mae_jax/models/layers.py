"""Transformer parts with PyTorch's parameter names (timm's `Block`)."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import attention

# Names of running statistics: they are in the parameter tree, but no optimiser updates them.
STATISTICS = ("running_mean", "running_var")
xavier = nn.initializers.xavier_uniform()


def torch_uniform(fan_in: int) -> Any:
    """PyTorch's default for linear layers and convolutions: uniform in +-1/sqrt(fan_in)."""

    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Exact GELU, as PyTorch computes it; only `x` is kept for the gradient.

    Written with erf rather than `jax.nn.gelu(approximate=False)`, whose erfc takes twice as long on
    a CPU (forward and backward) for the same values.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * np.asarray(np.sqrt(0.5), x.dtype)))


def _gelu_bwd(x, grad):
    wide = x.astype(jnp.float32)
    share = 0.5 * (1.0 + jax.lax.erf(wide * np.float32(np.sqrt(0.5))))
    density = jnp.exp(-0.5 * wide * wide) * np.float32(1 / np.sqrt(2 * np.pi))
    return ((grad * (share + wide * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_bwd)


def _plain(x, y, axes, dtype):
    return jax.lax.dot_general(x, y, (axes, ((), ()))).astype(dtype)


def _widened(x, y, axes, dtype):
    """A bfloat16 product on a CPU, whose result is float32 before it is rounded.

    XLA's CPU products of bfloat16 use the processor's instructions for it only if the result is float32. For any other
    result it converts both factors to float32 first.
    """
    if axes == ((0,), (0,)) and len(x) % 2 == 0:
        # A sum over two axes makes the compiler transpose `x`; for a sum over the first one it has no bfloat16 product.
        x, y = (a.reshape(2, len(a) // 2, a.shape[1]) for a in (x, y))
        axes = ((0, 1), (0, 1))
    out = jax.lax.dot_general(x, y, (axes, ((), ())), preferred_element_type=jnp.float32)
    # XLA cannot run such a product if it has folded a transposition into it.
    return jax.lax.optimization_barrier(out).astype(dtype)


def _product(x, y, axes, dtype):
    """`dot_general` of two matrices, summed over one axis of each, for the platform that it is compiled for."""
    if x.dtype != jnp.bfloat16:
        return _plain(x, y, axes, dtype)
    ways = {name: functools.partial(f, axes=axes, dtype=dtype) for name, f in (("cpu", _widened), ("default", _plain))}
    return jax.lax.platform_dependent(x, y, **ways)


def summed_product(x: jax.Array, y: jax.Array, dtype: Any) -> jax.Array:
    """`(M, K)` and `(M, N)` to `(K, N)`, summed over their first axis: the gradient of a kernel."""
    return _product(x, y, ((0,), (0,)), dtype)


@jax.custom_vjp
def matmul(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`(M, K) @ (K, N)` in the type of `x`, with the gradient of the kernel computed in the kernel's own layout.

    JAX's rule computes the transposed gradient and transposes it back. GPU and TPU compilers fold
    that away; the CPU compiler copies every weight gradient, a quarter of a ViT-B step.
    """
    return _matmul_fwd(x, kernel)[0]


def _matmul_fwd(x, kernel):
    narrow = kernel.astype(x.dtype)
    return _product(x, narrow, ((1,), (0,)), x.dtype), (x, narrow, jnp.zeros((), kernel.dtype))


def _matmul_bwd(residuals, grad):
    x, kernel, like = residuals
    down = _product(grad, kernel, ((1,), (1,)), x.dtype)
    return down, summed_product(x, grad, like.dtype)


matmul.defvjp(_matmul_fwd, _matmul_bwd)


def linear(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """`(..., K)` times `(K, N)`, with the products of `matmul`."""
    return matmul(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], kernel.shape[-1])


@jax.custom_vjp
def shift(x: jax.Array, bias: jax.Array) -> jax.Array:
    """`x + bias` in the type of `x`, with the gradient of the bias summed in float32."""
    return x + bias.astype(x.dtype)


def _shift_bwd(like, grad):
    return grad, grad.astype(jnp.float32).sum(tuple(range(grad.ndim - 1))).astype(like.dtype)


shift.defvjp(lambda x, bias: (shift(x, bias), jnp.zeros((), bias.dtype)), _shift_bwd)


@jax.custom_vjp
def scaled(x: jax.Array, factor: jax.Array) -> jax.Array:
    """`x * factor` in the type of `x`, with the gradient of the factor summed in float32."""
    return x * factor.astype(x.dtype)


def _scaled_bwd(saved, grad):
    x, factor = saved
    products = grad.astype(jnp.float32) * x.astype(jnp.float32)
    return grad * factor.astype(grad.dtype), products.sum(tuple(range(grad.ndim - 1))).astype(factor.dtype)


scaled.defvjp(lambda x, factor: (scaled(x, factor), (x, factor)), _scaled_bwd)


class Dense(nn.Module):
    """`nn.Dense`, with the products and sums above. Checkpoints call unnamed layers `Dense_0`, after the class."""

    features: int
    dtype: Any = jnp.float32
    kernel_init: Any = xavier
    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        out = linear(x.astype(self.dtype), kernel)
        if self.use_bias:
            out = shift(out, self.param("bias", nn.initializers.zeros, (self.features,)))
        return out


def dense(features: int, dtype: Any, name: str | None = None, init: Any = xavier, use_bias: bool = True) -> Dense:
    """Linear layer, by default Xavier-uniform as in MAE."""
    return Dense(features, dtype, init, use_bias, name=name)


class Attention(nn.Module):
    """Multi-head self-attention with a fused qkv projection, rows [q; k; v], head-major."""

    num_heads: int
    dtype: Any = jnp.float32
    implementation: str = "auto"
    qkv_init: Any = xavier

    @nn.compact
    def __call__(self, x):
        B, L, D = x.shape
        qkv = dense(3 * D, self.dtype, "qkv", self.qkv_init)(x)
        q, k, v = jnp.moveaxis(qkv.reshape(B, L, 3, self.num_heads, D // self.num_heads), 2, 0)
        # Kept only where a caller asks for it (attention maps of the report).
        self.sow("intermediates", "query_key", (q, k))
        x = attention.attend(q, k, v, self.implementation)
        return dense(D, self.dtype, "proj")(x.reshape(B, L, D))


class Mlp(nn.Module):
    """Two dense layers with a GELU between them."""

    hidden_dim: int
    dtype: Any = jnp.float32
    init: Any = xavier

    @nn.compact
    def __call__(self, x):
        D = x.shape[-1]
        x = gelu(dense(self.hidden_dim, self.dtype, "fc1", self.init)(x))
        return dense(D, self.dtype, "fc2", self.init)(x)


@jax.custom_vjp
def normalise(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """LayerNorm over the last axis with the ViT's eps, computed in float32.

    The gradient uses the closed form. On a CPU it is 1.4 to 1.8 times as fast as differentiating the
    forward pass.
    """
    return _normalise_fwd(x, scale, bias)[0]


def _normalise_fwd(x, scale, bias):
    wide = x.astype(jnp.float32)
    mean = wide.mean(axis=-1, keepdims=True)
    centred = wide - mean
    factor = jax.lax.rsqrt((centred * centred).mean(axis=-1, keepdims=True) + 1e-6)
    return (centred * (factor * scale) + bias).astype(x.dtype), (x, mean, factor, scale)


def _normalise_bwd(residuals, grad):
    x, mean, factor, scale = residuals
    unit = (x.astype(jnp.float32) - mean) * factor
    wide = grad.astype(jnp.float32)
    scaled = wide * scale
    along = (scaled * unit).mean(axis=-1, keepdims=True)
    down = factor * (scaled - scaled.mean(axis=-1, keepdims=True) - unit * along)
    others = tuple(range(x.ndim - 1))
    return down.astype(x.dtype), (wide * unit).sum(others), wide.sum(others)


normalise.defvjp(_normalise_fwd, _normalise_bwd)


class LayerNorm(nn.Module):
    """LayerNorm with the ViT's eps; statistics are float32 whatever `dtype` is."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        return normalise(x.astype(self.dtype), scale, bias)


def layer_norm(name: str | None, dtype: Any) -> LayerNorm:
    """`LayerNorm` in the computing precision of the network."""
    return LayerNorm(dtype, name=name)


class Block(nn.Module):
    """Pre-norm transformer block.

    scale `(B, 2)`: factors of the two residual branches of each example, for stochastic depth.
    """

    num_heads: int
    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32
    implementation: str = "auto"
    qkv_init: Any = xavier

    @nn.compact
    def __call__(self, x, scale=None):
        def scaled(branch, number):
            return branch if scale is None else branch * scale[:, number, None, None]

        attn = Attention(self.num_heads, self.dtype, self.implementation, self.qkv_init, name="attn")
        x = x + scaled(attn(layer_norm("norm1", self.dtype)(x)), 0)
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), self.dtype, name="mlp")
        return x + scaled(mlp(layer_norm("norm2", self.dtype)(x)), 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`(B, ..., D)` with mean 0 and variance 1 in every channel, times `scale`, plus `bias`, both `(D,)`.

    Also the mean and biased variance `(D,)`, which have no gradient. The closed form of the gradient sums over the
    input only as often as the gradients of scale and bias do.
    """
    return _normalise_batch_fwd(x, scale, bias, epsilon)[0]


def _normalise_batch_fwd(x, scale, bias, epsilon):
    others = tuple(range(x.ndim - 1))
    mean, var = x.mean(axis=others), x.var(axis=others)
    factor = jax.lax.rsqrt(var + epsilon)
    return ((x - mean) * (factor * scale) + bias, mean, var), (x, mean, factor, scale)


def _normalise_batch_bwd(epsilon, saved, gradients):
    (x, mean, factor, scale), grad = saved, gradients[0]
    others, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    unit = (x - mean) * factor
    of_scale, of_bias = (grad * unit).sum(axis=others), grad.sum(axis=others)
    rest = grad - unit * (of_scale / count)
    # A batch of vectors is small: summed once more, so that its gradient sums to 0 more exactly.
    mean_rest = rest.mean(axis=others) if x.ndim == 2 else of_bias / count
    return factor * scale * (rest - mean_rest), of_scale, of_bias


normalise_batch.defvjp(_normalise_batch_fwd, _normalise_batch_bwd)


class BatchNorm(nn.Module):
    """PyTorch's BatchNorm, over all axes of `(B, ..., D)` but the last, in float32.

    It normalises by the biased variance and tracks the unbiased one; Flax tracks the biased one. The
    running statistics are entries of the parameter tree that the optimiser does not update. In
    training, the second result holds their new values. Otherwise it is empty.

    momentum: weight of the newest batch, as PyTorch counts it.
    affine: whether it has a scale, which is `start` at first, and a bias.
    shifts: whether an affine one has the bias.
    """

    epsilon: float = 1e-6
    momentum: float = 0.1
    affine: bool = False
    start: float = 1.0
    shifts: bool = True

    @nn.compact
    def __call__(self, x, train: bool):
        x = x.astype(jnp.float32)
        D = x.shape[-1]
        mean = self.param("running_mean", nn.initializers.zeros, (D,))
        var = self.param("running_var", nn.initializers.ones, (D,))
        scale, bias = jnp.ones(D), jnp.zeros(D)
        if self.affine:
            scale = self.param("scale", nn.initializers.constant(self.start), (D,))
            if self.shifts:
                bias = self.param("bias", nn.initializers.zeros, (D,))
        if not train:
            factor = scale / jnp.sqrt(jax.lax.stop_gradient(var) + self.epsilon)
            return (x - jax.lax.stop_gradient(mean)) * factor + bias, {}
        out, batch_mean, batch_var = normalise_batch(x, scale, bias, self.epsilon)
        count = x.size // D
        if count < 2 and not self.is_initializing():
            raise UserError(
                "a BatchNorm has one value per channel, which it turns into 0: give it at least 2 images at once "
                "(config.optim.batch_size, config.optim.accum_steps)"
            )
        m, unbias = self.momentum, count / max(count - 1, 1)
        new = {
            "running_mean": (1 - m) * mean + m * batch_mean,
            "running_var": (1 - m) * var + m * unbias * batch_var,
        }
        return out, jax.lax.stop_gradient(new)
