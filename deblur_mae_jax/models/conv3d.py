"""Blocks of a 3-D U-Net with MONAI's parameter names; channels last."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax.models import conv3d_segments, layers

EPSILON = 1e-5


def instance_norm(x: jax.Array) -> jax.Array:
    """Every channel of every example to zero mean and unit variance; statistics in float32."""
    wide = x.astype(jnp.float32)
    axes = tuple(range(1, x.ndim - 1))
    mean = wide.mean(axes, keepdims=True)
    var = jnp.square(wide - mean).mean(axes, keepdims=True)
    return ((wide - mean) * jax.lax.rsqrt(var + EPSILON)).astype(x.dtype)


def leaky_relu(x: jax.Array) -> jax.Array:
    """Slope 0.01."""
    return nn.leaky_relu(x, 0.01)


def convolve(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolve `(B, D, H, W, I)` with `(k, k, k, I, O)`, with PyTorch's zero padding by k // 2.

    On a CPU, this runs one 2-D convolution per plane of the kernel. XLA's 3-D convolution takes three to five
    times as long there, forward and backward, for the same values. Large volumes have products of their own
    (`models/conv3d_segments.py`).
    """
    if jax.default_backend() == "cpu" and kernel.shape[0] == stride == 1:
        return layers.linear(x, kernel[0, 0, 0])
    if jax.default_backend() != "cpu" or kernel.shape[0] == 1:
        pad = kernel.shape[0] // 2
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            (stride,) * 3,
            [(pad, pad)] * 3,
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        )
    if stride == 1 and conv3d_segments.pays(x, kernel):
        return _of_large_volume(x, kernel)
    return _by_planes(x, kernel, stride)


def _by_planes(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    k = kernel.shape[0]
    pad = k // 2
    B, D = x.shape[:2]
    padded = jnp.pad(x, ((0, 0), (pad, pad), (0, 0), (0, 0), (0, 0)))
    out: Any = 0
    for number in range(k):
        slices = padded[:, number : number + D : stride]
        planes = slices.reshape(-1, *x.shape[2:])
        out = out + jax.lax.conv_general_dilated(
            planes, kernel[number], (stride,) * 2, [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )  # fmt: skip
    return out.reshape(B, -1, *out.shape[1:])


@jax.custom_vjp
def _of_large_volume(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return conv3d_segments.convolve(x, kernel) if x.shape[-1] == 1 else _by_planes(x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    flipped = kernel[::-1, ::-1, ::-1].swapaxes(3, 4)
    return _by_planes(gradient, flipped), conv3d_segments.of_kernel(x, gradient)


_of_large_volume.defvjp(lambda x, kernel: (_of_large_volume(x, kernel), (x, kernel)), _backward)


class Conv(nn.Module):
    """A convolution inside a module of its own, as MONAI names it: `<name>.conv.weight`."""

    features: int
    kernel: int = 3
    stride: int = 1
    use_bias: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        return _Convolution(self.features, self.kernel, self.stride, self.use_bias, self.dtype, name="conv")(x)


class _Convolution(nn.Module):
    features: int
    kernel: int
    stride: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        k, fan_in = self.kernel, x.shape[-1] * self.kernel**3
        init = layers.torch_uniform(fan_in)
        kernel = self.param("kernel", init, (k, k, k, x.shape[-1], self.features))
        y = convolve(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)
        if self.use_bias:
            y = layers.shift(y, self.param("bias", init, (self.features,)))
        return y


class Patches(nn.Module):
    """A convolution that reads every voxel once, in cubes of `side` voxels, with the parameters of `nn.Conv`.

    On a CPU it is a matrix product, which takes a fifth or less of the time of XLA's convolution.
    """

    features: int
    side: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        k, C = self.side, x.shape[-1]
        init = layers.torch_uniform(k**3 * C)
        kernel = self.param("kernel", init, (k, k, k, C, self.features)).astype(self.dtype)
        bias = self.param("bias", init, (self.features,))
        x = x.astype(self.dtype)
        if jax.default_backend() != "cpu":
            y = jax.lax.conv_general_dilated(
                x, kernel, (k,) * 3, "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
            )
            return layers.shift(y, bias)
        D, H, W = (n // k for n in x.shape[1:4])
        x = x[:, : D * k, : H * k, : W * k].reshape(-1, D, k, H, k, W, k, C).transpose(0, 1, 3, 5, 2, 4, 6, 7)
        return layers.shift(x.reshape(-1, D, H, W, k**3 * C) @ kernel.reshape(-1, self.features), bias)


class TransposedConv(nn.Module):
    """Doubles every side: one matrix product and a rearrangement, no overlap.

    The kernel `(2, 2, 2, out, in)` is PyTorch's `(in, out, 2, 2, 2)`, not flipped.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        fan_in = self.features * 8  # PyTorch counts a transposed kernel's second axis
        kernel = _Kernel((2, 2, 2, self.features, x.shape[-1]), fan_in, name="conv")()
        B, D, H, W, _ = x.shape
        out = jnp.einsum("bdhwi,xyzoi->bdxhywzo", x, kernel.astype(self.dtype))
        return out.reshape(B, 2 * D, 2 * H, 2 * W, self.features)


class _Kernel(nn.Module):
    shape: tuple[int, ...]
    fan_in: int

    @nn.compact
    def __call__(self):
        return self.param("kernel", layers.torch_uniform(self.fan_in), self.shape)


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions, each normalised, and a skip that is projected where the channels differ."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        skip = x
        y = leaky_relu(instance_norm(Conv(self.features, dtype=self.dtype, name="conv1")(x)))
        y = instance_norm(Conv(self.features, dtype=self.dtype, name="conv2")(y))
        if x.shape[-1] != self.features:
            skip = instance_norm(Conv(self.features, 1, dtype=self.dtype, name="conv3")(x))
        return leaky_relu(y + skip)


class EncoderBlock(nn.Module):
    """A residual block on a skip connection: MONAI's `UnetrBasicBlock`."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        return ResidualBlock(self.features, self.dtype, name="layer")(x)


class UpBlock(nn.Module):
    """Up-sample, join with the skip connection, residual block: MONAI's `UnetrUpBlock`.

    Without a skip (`None`) the block processes the up-sampled input alone.
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, skip):
        x = TransposedConv(self.features, self.dtype, name="transp_conv")(x)
        if skip is not None:
            x = jnp.concatenate([x, skip], axis=-1)
        return ResidualBlock(self.features, self.dtype, name="conv_block")(x)


class OutBlock(nn.Module):
    """A 1x1x1 convolution with bias, in float32."""

    features: int

    @nn.compact
    def __call__(self, x):
        x = x.astype(jnp.float32)
        return Conv(self.features, 1, use_bias=True, name="conv")(x)


class AffineNorm(nn.Module):
    """Instance norm with a learned scale and shift."""

    @nn.compact
    def __call__(self, x):
        C = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (C,))
        bias = self.param("bias", nn.initializers.zeros, (C,))
        return (instance_norm(x) * scale + bias).astype(x.dtype)


class BasicStem(nn.Module):
    """DAE's patch embedding: two 3x3x3 convolutions, the first with stride 2, each with an affine norm."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = Conv(self.features, stride=2, dtype=self.dtype, name="conv1")(x)
        x = leaky_relu(AffineNorm(name="norm1")(x))
        x = Conv(self.features, dtype=self.dtype, name="conv2")(x)
        return leaky_relu(AffineNorm(name="norm2")(x))


def channel_norm(x: jax.Array) -> jax.Array:
    """LayerNorm over channels without parameters, which MONAI applies to the inputs of the decoder."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    var = jnp.square(wide - mean).mean(-1, keepdims=True)
    return ((wide - mean) * jax.lax.rsqrt(var + np.float32(EPSILON))).astype(x.dtype)
