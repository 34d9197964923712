"""Attention maps of a classifier by attention rollout (Abnar and Zuidema 2020)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp


def rollout(model: Any, params: Any, images: jax.Array, level: jax.Array | None = None) -> jax.Array:
    """Return `(B, *grid)`: the share of each patch in the input of the head; the shares sum to one.

    The attention of each block is averaged over heads and mixed equally with the residual path. These
    matrices are then multiplied over all blocks.
    """
    _, state = model.apply({"params": params}, images, level, method=model.features, mutable=["intermediates"])
    total = None
    for number in range(model.depth):
        query, key = state["intermediates"][f"blocks_{number}"]["attn"]["query_key"][0]
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / jnp.sqrt(query.shape[-1])
        weights = jax.nn.softmax(scores.astype(jnp.float32), axis=-1).mean(axis=1)
        weights = 0.5 * weights + 0.5 * jnp.eye(weights.shape[-1])
        total = weights if total is None else jnp.einsum("bij,bjk->bik", weights, total)
    first = model.num_prefix
    assert total is not None
    seen = total[:, first:].mean(axis=1) if model.pool == "mean" else total[:, 0]
    patches = seen[:, first:]
    patches = patches / patches.sum(axis=1, keepdims=True)
    return patches.reshape(-1, *model.grid)
