"""Max pooling with PyTorch's padding, whose gradient is fast on CPUs too.

XLA's gradient of a maximum over windows took a tenth of a ResNet-50's step on a CPU (docs/performance-cpu.md). On a GPU
it adds with atomic operations, in an order that differs from run to run.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

_PLACES = tuple((row, column) for row in range(3) for column in range(3))


def max_pool(x: jax.Array) -> jax.Array:
    """Maxima of `(B, H, W, C)` over windows of 3 x 3 pixels in steps of two; the border counts as -inf.

    The gradient of a window goes to its first maximum, as in PyTorch.
    """
    if jax.default_backend() == "tpu":
        return nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
    return _by_place(x)


@jax.custom_vjp
def _by_place(x: jax.Array) -> jax.Array:
    return _forward(x)[0]


def _forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """The maxima, and what the gradient needs: the number of each one's place in its window, and the sides."""
    (H, W), (h, w) = x.shape[1:3], (-(-side // 2) for side in x.shape[1:3])
    border = ((0, 0), (1, 2 * h - H), (1, 2 * w - W), (0, 0))
    wide = jnp.pad(x, border, constant_values=-jnp.inf)
    views = [wide[:, i : i + 2 * h - 1 : 2, j : j + 2 * w - 1 : 2] for i, j in _PLACES]
    most, place = views[0], jnp.zeros(views[0].shape, jnp.int8)
    for number, view in enumerate(views[1:], 1):
        better = (view > most) | jnp.isnan(view)
        most, place = jnp.where(better, view, most), jnp.where(better, jnp.int8(number), place)
    return most, (place, jnp.zeros((0, H, W, 0), x.dtype))


def _backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array]:
    """An even row is the middle of one window; an odd row is the last of it and the first of the next one."""
    place, (_, H, W, _) = saved[0], saved[1].shape
    (B, h, w, C), zero = gradient.shape, jnp.zeros((), gradient.dtype)

    def part(row, column):
        found = jnp.where(place == 3 * row + column, gradient, zero)
        if row == 0:
            found = jnp.pad(found[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
        if column == 0:
            found = jnp.pad(found[:, :, 1:], ((0, 0), (0, 0), (0, 1), (0, 0)))
        return found

    even, odd = (1,), (2, 0)
    phases = [
        [sum((part(i, j) for i in rows for j in columns), start=zero) for columns in (even, odd)]
        for rows in (even, odd)
    ]
    out = jnp.stack([jnp.stack(columns, axis=3) for columns in phases], axis=2)
    return (out.reshape(B, 2 * h, 2 * w, C)[:, :H, :W],)


_by_place.defvjp(_forward, _backward)
