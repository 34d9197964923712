"""What the networks of SimMIM (Xie et al. 2022) share: a mask token, one linear layer as decoder, and the whole call.

The encoder processes all patches; a learned token replaces the embedding of masked ones. The masked patches are
larger than the encoder's own. Parameter names are those of SimMIM's code: `encoder` and `decoder_0`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import convvit, embed, masking

KINDS = ("reconstruct",)
AXES = 2
ENCODER, MASK_TOKEN = "encoder/", "mask_token"


class MaskedImageModel(nn.Module):
    """The calls that these networks share. A network makes its `encoder` in `_make_encoder`, and has `_encode`.

    A network has the fields `image_size`, `in_chans`, `mask_size` and `dtype`, and

    token_size: side of the patches that its encoder embeds, pixels.
    stride: side of the patches that its encoder's tokens stand for in the end, pixels.
    num_prefix: tokens before those of the patches.
    """

    def setup(self):
        self.encoder = self._make_encoder()
        features = self.stride**2 * self.in_chans
        self.decoder_0 = convvit.convolution(features, self._width(), 1, 1, dtype=self.dtype)

    @property
    def mask_grid(self) -> tuple[int, ...]:
        """Rows and columns of the patches that are masked."""
        return sides.divided(self.image_size, self.mask_size)

    def _make_encoder(self) -> Any:
        raise NotImplementedError

    def _width(self) -> int:
        raise NotImplementedError

    def _encode(self, images: jax.Array, level: Any, hide: Any = None, drop_path_keys: Any = None) -> jax.Array:
        """Tokens `(B, num_prefix + L, D)` after the norm. hide: a function applied to the embedded patches."""
        raise NotImplementedError

    def encode(self, images, ids_keep=None, level=None):
        """`(B, H, W, C)` -> tokens `(B, num_prefix + L, D)` after the final norm.

        ids_keep: None; no patch can be left out.
        level: blur level of each image `(B,)`, required if the model is conditioned.
        """
        if ids_keep is not None:
            raise ValueError("a network of SimMIM encodes all patches")
        return self._encode(images, level)

    def features(self, images, level=None, pool="mean"):
        """`(B, H, W, C)` -> features `(B, D)` float32, without masking.

        level: blur level of each image `(B,)`, required if the model is conditioned.
        pool: "mean" of the tokens of the patches; "cls", of a ViT; or "none" for all tokens `(B, num_prefix + L, D)`.
        """
        x = self._encode(images, level).astype(jnp.float32)
        if pool == "none":
            return x
        if pool == "cls" and not self.num_prefix:
            raise UserError("pool='cls': this network has no cls token. Choices: mean, none")
        return x[:, 0] if pool == "cls" else x[:, self.num_prefix :].mean(axis=1)

    def __call__(self, images, noise=None, mask_ratio: float = 0.0, level=None, drop_path_keys=None):
        """Reconstruct `(B, H, W, C)` normalised images: predicted patches of `mask_size`, `(B, L, P*P*C)`.

        noise: `(B, L)`, uniform draws that choose the masked patches; not needed at mask_ratio 0.
        mask_ratio: share of the patches that are masked.
        level: blur level of each image `(B,)`, required if the model is conditioned.
        drop_path_keys: random keys `(B,)` for stochastic depth, in training.
        out: `mask` `(B, L)` (1 = masked), and `latent`, the tokens as of `encode`.
        """
        hide, mask = None, jnp.zeros((images.shape[0], sides.count(self.image_size, self.mask_size)))
        if mask_ratio:
            _, mask, _ = masking.random_masking(noise, mask_ratio)
            hide = self._hide(mask)
        latent = self._encode(images, level, hide, drop_path_keys)
        places = sides.divided(self.image_size, self.stride)
        x = latent[:, self.num_prefix :].reshape(len(latent), *places, -1)
        pixels = shuffled(self.decoder_0(x), self.stride, self.in_chans)
        pred = masking.patchify(pixels, self.mask_size).astype(jnp.float32)
        return pred, {"mask": mask, "latent": latent}

    def _hide(self, mask: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """The function that puts the mask token in place of masked patches, for tokens `(B, L, D)` or a map."""
        hidden = masking.spread(mask, self.mask_grid, self.mask_size // self.token_size)

        def hide(x: jax.Array) -> jax.Array:
            at = hidden if x.ndim == 4 else hidden.reshape(len(x), -1, 1)
            return jnp.where(at > 0, self.encoder.mask_token.reshape(-1).astype(x.dtype), x)

        return hide


def mask_token(owner: nn.Module, width: int) -> jax.Array:
    """The parameter of the mask token, of the encoder `owner`."""
    return owner.param(MASK_TOKEN, embed.token_init, (1, 1, width))


def shuffled(x: jax.Array, stride: int, channels: int) -> jax.Array:
    """PyTorch's PixelShuffle: `(B, h, w, C*r*r)` -> `(B, h*r, w*r, C)`, from channels in the order (C, row, column)."""
    B, h, w, _ = x.shape
    x = x.reshape(B, h, w, channels, stride, stride).transpose(0, 1, 4, 2, 5, 3)
    return x.reshape(B, h * stride, w * stride, channels)


def check(model: Any) -> Any:
    """Raise `UserError` for sides that do not fit each other; else return `model`."""
    size, mask, token = model.image_size, model.mask_size, model.token_size
    if mask < 1 or not sides.fits(size, mask) or mask % token:
        raise UserError(
            f"config.model.mask_size={mask} must divide config.image_size={size} and be a multiple of {token}, the "
            "side of the network's patches"
        )
    return model


def decoder_flops(model: Any, width: int) -> float:
    """Operations of the decoder for one image (2 per multiply-add)."""
    return 2.0 * sides.count(model.image_size, model.stride) * width * model.stride**2 * model.in_chans
