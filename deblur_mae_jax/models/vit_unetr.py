"""A ViT encoder with a convolutional decoder for segmentation: the UNETR of Hatamizadeh et al. (2022), in 2-D.

The encoder has the parameter names of `vit`, so any pre-trained ViT fits. As in a U-Net, the decoder up-samples
the last hidden state step by step and concatenates evenly spaced earlier states. The last step, at full resolution,
concatenates features of the image itself. All new parameters are under `segmenter`.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import embed, layers, vit
from deblur_mae_jax.models.conv3d import leaky_relu

AXES = 2
KINDS = ("segment",)


def factors(patch_size: int) -> list[int]:
    """The steps from the grid of patches to pixels: prime factors of the patch size, the largest first."""
    out, rest, prime = [], patch_size, 2
    while rest > 1:
        while rest % prime == 0:
            out.append(prime)
            rest //= prime
        prime += 1
    return sorted(out, reverse=True)


class Expand(nn.Module):
    """`(B, H, W, C)` -> `(B, fH, fW, features)`: a transposed convolution with a kernel as large as its stride."""

    features: int
    factor: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        B, H, W, _ = x.shape
        f = self.factor
        x = layers.dense(f * f * self.features, self.dtype)(x)
        x = x.reshape(B, H, W, f, f, self.features).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(B, H * f, W * f, self.features)


class Refine(nn.Module):
    """Two 3x3 convolutions with norms over each example, and a projected skip."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        def convolve(x, side, name):
            y = nn.Conv(self.features, (side, side), use_bias=False, dtype=self.dtype, name=name)(x)
            return nn.GroupNorm(
                num_groups=None, group_size=max(1, self.features // 4), dtype=self.dtype,
                use_fast_variance=False, name=f"{name}_norm",
            )(y)  # fmt: skip

        y = convolve(leaky_relu(convolve(x, 3, "conv1")), 3, "conv2")
        return leaky_relu(y + convolve(x, 1, "skip"))


class Segmenter(nn.Module):
    """Maps hidden states `(B, g, g, D)`, the deepest first, and the image to logits `(B, H, W, K)` float32."""

    num_classes: int
    patch_size: int
    features: int
    dtype: Any

    @nn.compact
    def __call__(self, hidden, images):
        steps = factors(self.patch_size)
        width = self.features * 2 ** len(steps)
        x = Refine(width, self.dtype, name="bottom")(hidden[0])
        scale = 1
        for number, factor in enumerate(steps):
            scale, width = scale * factor, width // 2
            x = Expand(width, factor, self.dtype, name=f"up_{number}")(x)
            if number < len(steps) - 1:
                skip = Expand(width, scale, self.dtype, name=f"skip_{number}")(hidden[number + 1])
            else:
                skip = Refine(width, self.dtype, name="picture")(images.astype(self.dtype))
            x = Refine(width, self.dtype, name=f"refine_{number}")(jnp.concatenate([x, skip], -1))
        return nn.Dense(self.num_classes, name="out")(x.astype(jnp.float32))


class ViTUNETR(vit.ViT):
    """Encoder and segmenter. Build it with `Model`."""

    width: int = 16  # channels at full resolution

    def _head(self):
        self.norm = layers.layer_norm(None, self.dtype)
        self.segmenter = Segmenter(self.num_classes, self.patch_size, self.width, self.dtype)

    def features(self, images, level=None, mix=None, drop_path_keys=None):
        """The mean of the patch tokens after the norm `(B, D)` float32."""
        x = self.norm(self.hidden(images, level, mix, drop_path_keys)[-1])
        return x[:, self.num_prefix :].astype(jnp.float32).mean(axis=1)

    def __call__(self, images, level=None, train=False, drop_path_keys=None):  # type: ignore[override]
        """`(B, H, W, C)` -> logits `(B, H, W, K)` float32.

        level: blur level of each image `(B,)`, required if the model is conditioned.
        train: not used.
        drop_path_keys: random keys `(B,)` for stochastic depth, in training.
        """
        states = self.hidden(images, level, None, drop_path_keys)
        wanted = len(factors(self.patch_size))
        chosen = [max(1, round(self.depth * (wanted - i) / wanted)) - 1 for i in range(wanted)]
        states_used = [self.norm(states[-1]), *(states[number] for number in chosen[1:])]

        def on_grid(tokens):
            return tokens[:, self.num_prefix :].reshape(-1, *self.grid, self.embed_dim)

        return self.segmenter([on_grid(tokens) for tokens in states_used], images), {}


def Model(variant: str = "B", **fields: Any) -> ViTUNETR:
    """A segmentation network by the size of its ViT; other fields of `ViTUNETR` by name."""
    model = embed.build(ViTUNETR, variant, fields)
    widths = [model.width << step for step in range(len(factors(model.patch_size)) + 1)]
    if any(width % max(1, width // 4) for width in widths):
        raise UserError(f"config.model.width={model.width}: the norms divide channels by four; choose a multiple of 4")
    return model


def flops_per_image(model: ViTUNETR, mask_ratio: float = 0.0, training: bool = True) -> float:
    """Floating-point operations of the products and convolutions for one image (2 per multiply-add)."""
    L, D = model.num_patches, model.embed_dim
    total = 2.0 * L * model.patch_size**2 * model.in_chans * D
    total += embed.block_flops(model.num_prefix + L, D, model.depth, model.mlp_ratio)

    def refine(before, after, pixels):
        return 2 * pixels * (9 * before * after + 9 * after * after + before * after)

    steps = factors(model.patch_size)
    width, places = model.width * 2 ** len(steps), L
    total += refine(D, width, L)
    for number, factor in enumerate(steps):
        before, width = width, width // 2
        places *= factor**2
        total += 2 * places * before * width
        if number < len(steps) - 1:
            total += 2 * places * D * width
        else:
            total += refine(model.in_chans, width, places)
        total += refine(2 * width, width, places)
    total += 2 * places * width * model.num_classes
    return total * (3 if training else 1)


RULES = vit.RULES
