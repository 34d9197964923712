"""Attention rollout against its definition, step by step in NumPy."""

import jax
import numpy as np
import pytest
from tiny_runs import stirred

from deblur_mae_jax.inference.attention_rollout import rollout


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_the_shares_follow_the_definition(pool):
    trained = stirred("finetune", model__pool=pool)
    model, params = trained.model, trained.params
    images = np.random.default_rng(0).normal(size=(2, *trained.network.inputs.out, 1)).astype(np.float32)
    level = np.array([1, 4])
    got = np.asarray(rollout(model, params, images, level))
    _, state = model.apply({"params": params}, images, level, method=model.features, mutable=["intermediates"])
    for image in range(2):
        total = None
        for number in range(model.depth):
            query, key = (
                np.asarray(x[image]) for x in state["intermediates"][f"blocks_{number}"]["attn"]["query_key"][0]
            )
            tokens, heads, width = query.shape
            mean = np.zeros((tokens, tokens))
            for head in range(heads):
                scores = query[:, head] @ key[:, head].T / np.sqrt(width)
                shares = np.exp(scores - scores.max(axis=1, keepdims=True))
                mean += shares / shares.sum(axis=1, keepdims=True) / heads
            mixed = (mean + np.eye(tokens)) / 2
            total = mixed if total is None else mixed @ total
        first = model.num_prefix
        seen = total[first:].mean(axis=0) if pool == "mean" else total[0]
        want = (seen[first:] / seen[first:].sum()).reshape(model.grid)
        np.testing.assert_allclose(got[image], want, rtol=2e-4)
    assert np.allclose(got.sum(axis=(1, 2)), 1) and np.ptp(got) > 0


def test_equal_attention_gives_every_patch_the_same_share():
    trained = stirred("finetune")
    flat = jax.tree_util.tree_map_with_path(
        lambda path, value: value * 0 if any(getattr(key, "key", "") == "qkv" for key in path) else value,
        trained.params,
    )
    images = np.random.default_rng(0).normal(size=(1, *trained.network.inputs.out, 1)).astype(np.float32)
    got = np.asarray(rollout(trained.model, flat, images, np.array([1])))
    np.testing.assert_allclose(got, 1 / got.size, rtol=1e-5)
