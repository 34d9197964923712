"""3 x 3 x 3 convolutions of large volumes on a CPU: products plane by plane, for four neighbours in a row at once.

A product for single voxels is 12 wide where the network is, which leaves most of a vector unit idle. Here one row of
the product's first factor holds the neighbourhood of a segment of four voxels, and the second factor holds the kernel
four times, each time moved by one voxel. Half of that factor is zero; the product is still the faster one. The
neighbourhoods of one plane stay in the cache.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

SIDE, LENGTH = 3, 4
# Voxels of a plane. At 64 x 64 this is faster than 2-D convolutions, forward for one channel and for the kernel; at
# 32 x 32 it is not. The limit between them was not measured.
LARGE = 48 * 48


def pays(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether these volumes `(B, D, H, W, I)` are large enough, and their rows divide into segments."""
    return kernel.shape[0] == SIDE and x.shape[2] * x.shape[3] >= LARGE and x.shape[3] % LENGTH == 0


def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve `(B, D, H, W, I)` with `(3, 3, 3, I, O)`, with one voxel of zeros around the volume."""
    B, D, H, W, _ = x.shape
    segments, factor = _segments(x), _four_times(kernel)

    def one(plane):
        seen = _neighbours(segments, plane, H)
        return jnp.matmul(seen, factor, preferred_element_type=jnp.float32).astype(x.dtype)

    return jnp.moveaxis(jax.lax.map(one, jnp.arange(D)), 0, 1).reshape(B, D, H, W, -1)


def of_kernel(x: jax.Array, gradient: jax.Array) -> jax.Array:
    """The gradient of the kernel `(3, 3, 3, I, O)`.

    The sum over the volumes comes last, so that devices which hold different volumes need to communicate once.
    """
    B, D, H, _, C = x.shape
    features = gradient.shape[-1]
    segments, upstream = _segments(x), gradient.reshape(B, D, -1, LENGTH * features)

    def add(total, plane):
        seen = _neighbours(segments, plane, H)
        given = jax.lax.dynamic_index_in_dim(upstream, plane, axis=1, keepdims=False)
        return total + jnp.einsum("bnk,bno->bko", seen, given, preferred_element_type=jnp.float32), None

    start = jnp.zeros((B, SIDE * SIDE * (LENGTH + 2) * C, LENGTH * features), jnp.float32)
    total = jax.lax.scan(add, start, jnp.arange(D))[0].sum(axis=0)
    shape = jax.ShapeDtypeStruct((SIDE, SIDE, SIDE, C, features), jnp.float32)
    return jax.linear_transpose(_four_times, shape)(total)[0].astype(x.dtype)


def _segments(x: jax.Array) -> jax.Array:
    """Four voxels of a row and one on each side of them: `(B, D + 2, H + 2, W / 4, 6 I)`."""
    B, D, H, W, C = x.shape
    wide = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (1, LENGTH - 1), (0, 0)))
    cut = lambda first: wide[:, :, :, first : first + W].reshape(B, D + 2, H + 2, W // LENGTH, LENGTH * C)
    return jnp.concatenate([cut(0), cut(LENGTH)[..., : 2 * C]], axis=-1)


def _neighbours(segments: jax.Array, plane: jax.Array, height: int) -> jax.Array:
    """The neighbourhoods of the segments of a plane: `(B, H W / 4, 9 * 6 I)`."""
    near = jax.lax.dynamic_slice_in_dim(segments, plane, SIDE, axis=1)
    parts = [near[:, i, j : j + height] for i in range(SIDE) for j in range(SIDE)]
    joined = jnp.concatenate(parts, axis=-1)
    return joined.reshape(len(segments), -1, joined.shape[-1])


def _four_times(kernel: jax.Array) -> jax.Array:
    """The kernel for each voxel of a segment: `(9 * 6 I, 4 O)`."""
    _, _, _, C, features = kernel.shape
    moved = [
        jnp.pad(kernel, ((0, 0), (0, 0), (i, LENGTH - 1 - i), (0, 0), (0, 0))).reshape(-1, features)
        for i in range(LENGTH)
    ]
    return jnp.stack(moved, axis=1).reshape(SIDE * SIDE * (LENGTH + 2) * C, LENGTH * features)
