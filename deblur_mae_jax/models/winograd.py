"""3 x 3 convolutions on a CPU with 16 products per 4 pixels instead of 36: Winograd's F(2 x 2, 3 x 3).

A tile of 2 x 2 pixels of the result depends on 4 x 4 pixels of the input. Along one axis, with input d and kernel g,

    y0 = m0 + m1 + m2,  y1 = m1 - m2 - m3,
    m0 = (d0 - d2) g0,  m1 = (d1 + d2) (g0 + g1 + g2) / 2,  m2 = (d2 - d1) (g0 - g1 + g2) / 2,  m3 = (d1 - d3) g2,

and the same along the other axis. The channels of each of the 16 places in a tile are one matrix product. The gradients
are such products too. Rounding differs from that of a plain convolution by a few units of float32.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.1.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

# So many images are computed at once that the 16 places of their tiles take at most this number of bytes.
AT_ONCE = 16 * 2**20
# Products of fewer tiles than this are slow. Batches without small divisors are filled with empty images instead.
FEW_TILES = 128


@jax.custom_vjp
def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve `(B, H, W, C)` with `(3, 3, C, D)` and one pixel of zeros around each image: `(B, H, W, D)`.

    The result has the type of `x`. All products are float32, as XLA's are on a CPU.
    """
    dtype, x = x.dtype, x.astype(jnp.float32)
    of_kernel = _kernel_places(kernel.astype(jnp.float32))

    def some(_, x):
        products = [_products(*pair, 2, 1) for pair in zip(_places(x), of_kernel, strict=True)]
        return (), _image(products, x.shape[:3])

    return _group_by_group(some, (), (x,), kernel)[1].astype(dtype)


def _backward(saved, gradient):
    x, gradient = saved[0].astype(jnp.float32), gradient.astype(jnp.float32)
    kernel = saved[1].astype(jnp.float32)
    turned = _kernel_places(kernel[::-1, ::-1])

    def some(sums, x, gradient):
        pairs = zip(_places(x), _gradient_places(gradient), strict=True)
        sums = [total + _products(*pair, 1, 1) for total, pair in zip(sums, pairs, strict=True)]
        products = [_products(*pair, 2, 2) for pair in zip(_places(gradient), turned, strict=True)]
        return sums, _image(products, x.shape[:3])

    sums, down = _group_by_group(some, [jnp.zeros((4, *kernel.shape[2:]), jnp.float32)] * 4, (x, gradient), kernel)
    return down.astype(saved[0].dtype), _kernel_gradient(sums).astype(saved[1].dtype)


convolve.defvjp(lambda x, kernel: (convolve(x, kernel), (x, kernel)), _backward)


def _group_by_group(function, carry, images, kernel):
    """`function(carry, *images)` on groups of images, one after the other; their results form one batch again."""
    # Without this the compiler computes what made the images again for each of the 16 places.
    images = jax.lax.optimization_barrier(images)
    B, H, W, _ = images[0].shape
    count, size = _groups(B, -(-H // 2) * -(-W // 2), sum(kernel.shape[2:]))
    if count == 1:
        return jax.lax.optimization_barrier(function(carry, *images))
    empty = count * size - B
    images = [jnp.pad(a, ((0, empty), *[(0, 0)] * 3)) if empty else a for a in images]
    groups = [a.reshape(count, size, *a.shape[1:]) for a in images]
    carry, out = jax.lax.scan(lambda carry, group: function(carry, *group), carry, groups)
    return carry, out.reshape(count * size, *out.shape[2:])[:B]


def _groups(B: int, tiles: int, channels: int) -> tuple[int, int]:
    """How many groups B images form and how many images are in each; empty images may fill the last group.

    tiles: of one image.
    channels: in and out together.
    """
    most = max(1, AT_ONCE // (16 * 4 * tiles * channels))
    count = next(n for n in range(1, B + 1) if B % n == 0 and (B // n <= most or n == B))
    if B // count * tiles >= FEW_TILES:
        return count, B // count
    count = -(-B // most)
    return count, -(-B // count)


def _products(first, second, one, other):
    """Four products of matrices, summed over axis `one` of `first` and `other` of `second`."""
    return jax.lax.dot_general(first, second, (((one,), (other,)), ((0,), (0,))))


# The 16 places are a list of their four columns, each an array of four rows.


def _places(x):
    """Of every tile of 2 x 2 pixels of `(B, H, W, C)`, and one pixel around it, 16 sums: four of `(4, tiles, C)`."""
    B, H, W, C = x.shape
    h, w = -(-H // 2), -(-W // 2)
    x = jnp.pad(x, ((0, 0), (1, 2 * h + 1 - H), (1, 2 * w + 1 - W), (0, 0))).reshape(B, h + 1, 2, w + 1, 2, C)
    along = lambda d: [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]
    rows = jnp.stack(along([x[:, first : first + h, parity] for first in (0, 1) for parity in (0, 1)]))
    columns = along([rows[:, :, :, first : first + w, parity] for first in (0, 1) for parity in (0, 1)])
    return [column.reshape(4, -1, C) for column in columns]


def _image(products, shape):
    """The pixels `(B, H, W, D)` of the products of 16 places."""
    (B, H, W), D = shape, products[0].shape[-1]
    h, w = -(-H // 2), -(-W // 2)
    along = lambda m: [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]
    pixels = [along(list(column)) for column in along(products)]
    rows = [jnp.stack([pixels[column][row].reshape(B, h, w, D) for column in (0, 1)], axis=3) for row in (0, 1)]
    return jnp.stack(rows, axis=2).reshape(B, 2 * h, 2 * w, D)[:, :H, :W]


def _gradient_places(gradient):
    """The 16 places of a gradient `(B, H, W, D)`: `_image`, transposed."""
    B, H, W, D = gradient.shape
    h, w = -(-H // 2), -(-W // 2)
    y = jnp.pad(gradient, ((0, 0), (0, 2 * h - H), (0, 2 * w - W), (0, 0))).reshape(B, h, 2, w, 2, D)
    along = lambda y: [y[0], y[0] + y[1], y[0] - y[1], -y[1]]
    rows = jnp.stack(along([y[:, :, 0], y[:, :, 1]]))
    return [column.reshape(4, -1, D) for column in along([rows[:, :, :, :, 0], rows[:, :, :, :, 1]])]


def _kernel_places(kernel):
    """The 16 places of a kernel `(3, 3, C, D)`."""

    def along(g):
        outer, inner = (g[0] + g[2]) * 0.5, g[1] * 0.5
        return [g[0], outer + inner, outer - inner, g[2]]

    return [jnp.stack(along(list(column))) for column in along([kernel[:, column] for column in range(3)])]


def _kernel_gradient(places):
    """The gradient of a kernel `(3, 3, C, D)` from those of its 16 places: `_kernel_places`, transposed."""

    def along(u):
        outer = (u[1] + u[2]) * 0.5
        return [u[0] + outer, (u[1] - u[2]) * 0.5, u[3] + outer]

    return jnp.stack([jnp.stack(along(list(column))) for column in along(places)], axis=1)
