"""The encoder of a Swin-UNETR with the three heads of its self-supervised pre-training (Tang et al. 2022).

The rotation head reads the first token of the last hidden state, the contrastive head the second, and the decoder all
of them. Parameter names are MONAI's (`swinViT`, `rotation_head`, `contrastive_head`, `conv.0` ...), so the encoder's
weights fit every other Swin-UNETR.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deblur_mae_jax import sides
from deblur_mae_jax.models import conv3d, layers, swin, swin_unetr

AXES = 3
KINDS = ("pretext",)
EMBEDDING = 512
# Indices of the convolutions in MONAI's sequence of convolution, norm, activation and up-sampling.
PLACES = (0, 4, 8, 12, 16, 20)


def upsample(x: jax.Array) -> jax.Array:
    """Every side doubled, trilinear, corners not aligned."""
    B, D, H, W, C = x.shape
    return jax.image.resize(x, (B, 2 * D, 2 * H, 2 * W, C), "linear")


class _Conv(nn.Module):
    """A convolution with bias."""

    features: int
    kernel: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        k, fan_in = self.kernel, x.shape[-1] * self.kernel**3
        init = layers.torch_uniform(fan_in)
        kernel = self.param("kernel", init, (k, k, k, x.shape[-1], self.features))
        bias = self.param("bias", init, (self.features,))
        x = conv3d.convolve(x.astype(self.dtype), kernel.astype(self.dtype))
        return layers.shift(x, bias)


class SwinSSL(nn.Module):
    """Encoder and heads. Build it with `Model`."""

    in_chans: int
    feature_size: int
    encoder: dict[str, Any]
    image_size: sides.Size = 96
    rebuilds: bool = True
    dtype: Any = jnp.float32

    def setup(self):
        self.swinViT = swin_unetr.SwinEncoder(**self.encoder)
        width = 16 * self.feature_size
        self.rotation_head = swin.linear(4, width, jnp.float32, None)  # type: ignore[arg-type]
        self.contrastive_head = swin.linear(EMBEDDING, width, jnp.float32, None)  # type: ignore[arg-type]
        if self.rebuilds:
            widths = [width // d for d in (2, 4, 8, 16, 16)]
            self.conv = _Sequence((*widths, self.in_chans), self.dtype)

    def encode(self, x):
        """`(B, D, H, W, C)`, sides multiples of 32 -> hidden states 0 to 4."""
        return self.swinViT(x.astype(self.dtype))

    def __call__(self, x, level=None):
        """`(B, D, H, W, C)` -> the reconstructed volume in float32, or `None` without a decoder.

        out: `rotation`, logits `(B, 4)`, and `embedding` `(B, 512)`.
        """
        last = conv3d.channel_norm(self.encode(x)[-1])  # as MONAI's encoder returns it
        tokens = last.reshape(last.shape[0], -1, last.shape[-1]).astype(jnp.float32)
        rebuilt = self.conv(last).astype(jnp.float32) if self.rebuilds else None
        # A cube of 32 voxels ends in a single token, which then serves both.
        second = tokens[:, min(1, tokens.shape[1] - 1)]
        rotation, embedding = self.rotation_head(tokens[:, 0]), self.contrastive_head(second)
        return rebuilt, {"rotation": rotation, "embedding": embedding}


class _Sequence(nn.Module):
    """Convolutions with norms and up-sampling between them; the last one is 1x1x1 and linear."""

    features: tuple[int, ...]
    dtype: Any

    @nn.compact
    def __call__(self, x):
        for name, width in zip(PLACES[:-1], self.features[:-1], strict=True):
            x = _Conv(width, 3, self.dtype, name=str(name))(x)
            x = upsample(conv3d.leaky_relu(conv3d.instance_norm(x)))
        return _Conv(self.features[-1], 1, self.dtype, name=str(PLACES[-1]))(x)


def Model(
    variant: str = "48",
    *,
    rebuilds: bool = True,
    feature_size: int | None = None,
    depths: tuple[int, ...] | None = None,
    num_heads: tuple[int, ...] | None = None,
    patch_embed: str = "conv",
    merge_order: str = "monai15",
    layout: str = "intended",
    image_size: sides.Size = 96,
    in_chans: int = 1,
    num_levels: int = 0,
    dtype: str = "float32",
    remat: bool = False,
) -> SwinSSL:
    """A self-supervised network by feature size; the other fields are those of `swin_unetr.Model`."""
    whole = swin_unetr.Model(
        variant, feature_size=feature_size, depths=depths, num_heads=num_heads, patch_embed=patch_embed,
        merge_order=merge_order, layout=layout, image_size=image_size, in_chans=in_chans, num_levels=num_levels,
        dtype=dtype, remat=remat,
    )  # fmt: skip
    names = ("feature_size", "depths", "num_heads", "patch_embed", "merge_order", "layout", "mask_token", "dtype",
             "remat")  # fmt: skip
    encoder = {name: getattr(whole, name) for name in names}
    return SwinSSL(whole.in_chans, whole.feature_size, encoder, whole.image_size, rebuilds, whole.dtype)


def flops_per_image(model: SwinSSL, mask_ratio: float = 0.0, training: bool = True) -> float:
    """Operations of the convolutions and matrix products for the two views of one cube (2 per multiply-add)."""
    names = ("depths", "num_heads", "patch_embed", "merge_order", "layout")
    fields = {name: model.encoder[name] for name in names}
    whole = swin_unetr.SwinUNETR(
        in_chans=model.in_chans,
        feature_size=model.feature_size,
        image_size=model.image_size,
        **fields,
    )
    total = swin_unetr.encoder_flops(whole)
    if model.rebuilds:
        voxels, width = sides.count(model.image_size, 32, 3), 16 * model.feature_size
        for divisor in (2, 4, 8, 16, 16):
            after = 16 * model.feature_size // divisor
            total += 27 * width * after * voxels
            voxels, width = 8 * voxels, after
        total += voxels * width * model.in_chans
    return 2.0 * 2.0 * total * (3 if training else 1)


RULES = swin_unetr.RULES
