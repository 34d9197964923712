"""Scaled dot-product attention: in XLA, in fused kernels for GPUs, in a loop for CPUs."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from deblur_mae_jax import sharding

ATTENTIONS = ("auto", "xla", "cudnn", "triton", "by_image")
# Scores of a batch up to this size stay in a CPU's cache and are computed at once.
CACHED_SCORES = 8 * 2**20


def to_even(x: jax.Array) -> jax.Array:
    """`x` with a token of zeros at its end if the number of tokens, axis 1, is odd."""
    return jnp.pad(x, [(0, 0), (0, x.shape[1] % 2), *[(0, 0)] * (x.ndim - 2)])


def attend_by_cudnn(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention in cuDNN's fused kernel for NVIDIA GPUs, forward and backward. It never stores the scores.

    JAX trains with even numbers of tokens only, so an odd one is made even with a token that is not attended to.
    """
    real = q.shape[1], k.shape[1]
    q, k, v = map(to_even, (q, k, v))
    counts: dict[str, Any] = {}
    if real != (q.shape[1], k.shape[1]):
        names = "query_seq_lengths", "key_value_seq_lengths"
        counts = {name: jnp.full(len(q), n, jnp.int32) for name, n in zip(names, real, strict=True)}
    product: Any = jax.nn.dot_product_attention
    return product(q, k, v, implementation="cudnn", **counts)[:, : real[0]]


def attend(q: jax.Array, k: jax.Array, v: jax.Array, implementation: str = "auto") -> jax.Array:
    """Scaled dot-product attention of `(B, tokens, heads, width)`; softmax in float32.

    The choice of `implementation` changes speed and memory, and results by rounding only:
    auto: by_image on a single CPU device, else xla.
    xla: two matrix products and a softmax, compiled by XLA.
    cudnn: NVIDIA's fused kernel, bfloat16 only, see `attend_by_cudnn`.
    triton: Tokamax's kernel for NVIDIA GPUs, see `attend_by_triton`.
    by_image: a loop over the images for CPUs, see `attend_by_image`.
    """
    if implementation == "auto":
        implementation = "by_image" if sharding.one_cpu() else "xla"
    if implementation == "by_image":
        return attend_by_image(q, k, v)
    if implementation == "triton":
        return attend_by_triton(q, k, v)
    if implementation == "cudnn":
        return attend_by_cudnn(q, k, v)
    product: Any = jax.nn.dot_product_attention
    return product(q, k, v, implementation=implementation)


def attend_by_triton(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention in Tokamax's fused kernel for NVIDIA GPUs, forward and backward. It never stores the scores.

    The compiler cannot divide a kernel among devices. So each device processes its own images, if their number is
    divisible by the number of devices.
    """
    tokamax = importlib.import_module("tokamax")  # not required: `embed.check` asks for it
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(sys.argv[:1])  # otherwise Tokamax parses the command line of the running program
    mesh = sharding.make_mesh()
    divided = mesh.size > 1 and len(q) % mesh.size == 0
    where = sharding.along(mesh) if divided else None
    return tokamax.dot_product_attention(q, k, v, implementation="triton", q_sharding=where)


def attend_by_image(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention in a loop over the images. The backward pass computes the scores again.

    The scores of one image stay in a CPU's cache, while those of a batch are written to memory a dozen
    times. The loop is twice as fast for the 198 tokens of a ViT-B decoder, forward and backward. Small
    batches are computed at once.
    """

    def one(qkv):
        q, k, v = (jnp.moveaxis(x, -3, -2) for x in qkv)
        scores = jnp.einsum("...qd,...kd->...qk", q * q.shape[-1] ** -0.5, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
        return jnp.moveaxis(jnp.einsum("...qk,...kd->...qd", weights, v), -3, -2)

    B, L, heads, _ = q.shape
    if 4 * B * heads * L * L <= CACHED_SCORES:
        return one((q, k, v))
    return jax.lax.map(jax.checkpoint(one), (q, k, v))
