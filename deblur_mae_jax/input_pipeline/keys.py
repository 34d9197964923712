"""Random keys: every draw of a run is a function of (seed, step, index in the batch)."""

from __future__ import annotations

import jax

# One named stream of randomness per purpose; each example then has its own key.
STREAMS = ("crop", "degrade", "mask", "drop_path", "augment", "erase", "mix")


def stream_keys(seed: int, step: jax.Array | int, index: jax.Array) -> dict[str, jax.Array]:
    """Random keys `(B,)` of every stream, for the examples at `index` `(B,)` in the batch of `step`.

    Every draw depends on (seed, step, index) alone. It does not depend on the number of devices, hosts
    or accumulation steps, and every example can be reproduced. Two draws are those of the first example of a part of a
    batch: how it is mixed (mixup, cutmix), and DAE's channels with `local_mask_scope=batch`.
    """
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    return {
        name: jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(step_key, i), index)
        for i, name in enumerate(STREAMS)
    }


def evaluation_keys(index: jax.Array) -> dict[str, jax.Array]:
    """Random keys `(B,)` of evaluation and prediction: the same in every run, at every step."""
    return stream_keys(0, 0, index)
