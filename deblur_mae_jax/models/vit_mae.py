"""Masked autoencoder with a ViT encoder and decoder (He et al. 2022), and D2MAE's blur token.

Parameter names and layouts are PyTorch's up to a rename and a transpose (`pytorch/names.py`). The position
tables are constants, not parameters. The network does not know which method trains it: it sees
images, masking noise and, if the method has one, a level.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from deblur_mae_jax import masking
from deblur_mae_jax.errors import unknown
from deblur_mae_jax.models import embed, layers, position

KINDS = ("reconstruct",)


class ViTMAE(nn.Module):
    """Encoder and decoder. Build it with `Model`."""

    image_size: int = 224
    patch_size: int = 16
    in_chans: int = 1
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    decoder_embed_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    mlp_ratio: float = 4.0
    conditioning: str = "none"
    level_code: str = "learned"
    decoder_level_token: bool = True
    num_levels: int = 0
    dtype: Any = jnp.float32
    attention: str = "auto"
    remat: bool = False

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches in the encoder: cls, and the blur token."""
        return 2 if self.conditioning == "token" else 1

    @property
    def num_decoder_prefix(self) -> int:
        """Tokens before the patches in the decoder."""
        return self.num_prefix if self.decoder_level_token else 1

    def setup(self):
        block = nn.remat(layers.Block) if self.remat else layers.Block
        self.cls_token = self.param("cls_token", embed.token_init, (1, 1, self.embed_dim))
        if self.conditioning != "none":
            if self.level_code == "learned":
                self.blur_token = self.param("blur_token", embed.token_init, (1, 1, self.embed_dim))
            self.level_embed = embed.LevelCode(self.embed_dim, self.level_code, self.num_levels)
        self.patch_embed = embed.PatchEmbed(
            self.patch_size, self.in_chans, self.embed_dim, self.dtype
        )
        self.blocks = [
            block(self.num_heads, self.mlp_ratio, self.dtype, self.attention)
            for _ in range(self.depth)
        ]
        self.norm = layers.layer_norm(None, self.dtype)
        self.decoder_embed = layers.dense(self.decoder_embed_dim, self.dtype)
        self.mask_token = self.param("mask_token", embed.token_init, (1, 1, self.decoder_embed_dim))
        self.decoder_blocks = [
            block(self.decoder_num_heads, self.mlp_ratio, self.dtype, self.attention)
            for _ in range(self.decoder_depth)
        ]
        self.decoder_norm = layers.layer_norm(None, self.dtype)
        self.decoder_pred = layers.dense(self.patch_size**2 * self.in_chans, self.dtype)

    def _code(self, level):
        code = self.level_embed(level)
        if self.level_code == "learned":
            code = code + self.blur_token[:, 0]
        return code[:, None].astype(self.dtype)  # (B, 1, D)

    def encode(self, images, ids_keep=None, level=None):
        """`(B, H, W, C)` -> `(B, num_prefix + K, D)` tokens after the final norm.

        ids_keep `(B, K)`: the visible patches; `None` keeps all, in order. level `(B,)`: needed
        where the model is conditioned.
        """
        if self.conditioning != "none" and level is None:
            raise ValueError(f"conditioning='{self.conditioning}' needs the level of every image")
        patches = masking.patchify(images, self.patch_size)
        table = position.sincos_2d(self.embed_dim, self.grid, self.num_prefix)
        patch_table = jnp.asarray(table[None, self.num_prefix :], self.dtype)
        B = images.shape[0]
        if ids_keep is not None:
            # Only visible patches are embedded; positions are gathered with them.
            patches = masking.take_patches(patches, ids_keep)
            patch_table = jnp.take(patch_table[0], ids_keep, axis=0)
        x = self.patch_embed(patches) + patch_table
        prefix = [jnp.broadcast_to(self.cls_token.astype(self.dtype), (B, 1, self.embed_dim))]
        if self.conditioning == "addition":
            x = x + self._code(level)
        elif self.conditioning == "token":
            prefix.append(self._code(level))
        x = jnp.concatenate([*prefix, x], axis=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def decode(self, latent, ids_keep=None, ids_restore=None):
        """Latent tokens -> `(B, L, P*P*C)` predicted patches, float32."""
        x = self.decoder_embed(latent)
        prefix, patches = x[:, : self.num_decoder_prefix], x[:, self.num_prefix :]
        if ids_restore is not None:
            fill = self.mask_token[0, 0].astype(self.dtype)
            patches = masking.restore_patches(patches, fill, ids_keep, ids_restore)
        table = position.sincos_2d(self.decoder_embed_dim, self.grid, self.num_decoder_prefix)
        x = jnp.concatenate([prefix, patches], axis=1) + jnp.asarray(table[None], self.dtype)
        for block in self.decoder_blocks:
            x = block(x)
        x = self.decoder_norm(x[:, self.num_decoder_prefix :])
        return self.decoder_pred(x).astype(jnp.float32)

    def __call__(self, images, noise=None, mask_ratio: float = 0.75, level=None):
        """Reconstruct `(B, H, W, C)` normalised images.

        noise `(B, L)`: uniform draws that choose the hidden patches; not needed at mask_ratio 0.
        Returns the predicted patches `(B, L, P*P*C)` and a dict with `latent`, `mask` `(B, L)`
        (1 = hidden) and `ids_restore`.
        """
        if mask_ratio == 0:
            latent = self.encode(images, None, level)
            mask = jnp.zeros((images.shape[0], self.grid**2))
            ids = jnp.broadcast_to(jnp.arange(self.grid**2), mask.shape)
            return self.decode(latent), {"latent": latent, "mask": mask, "ids_restore": ids}
        ids_keep, mask, ids_restore = masking.random_masking(noise, mask_ratio)
        latent = self.encode(images, ids_keep, level)
        pred = self.decode(latent, ids_keep, ids_restore)
        return pred, {"latent": latent, "mask": mask, "ids_restore": ids_restore}


def Model(
    variant: str = "B",
    *,
    image_size: int = 224,
    patch_size: int = 16,
    conditioning: str = "none",
    level_code: str = "learned",
    attention: str = "auto",
    dtype: str = "float32",
    **kwargs: Any,
) -> ViTMAE:
    """A ViT-MAE by size: variant "Ti", "S", "B", "L" or "H"; other fields of `ViTMAE` by name."""
    if level_code not in embed.LEVEL_CODES:
        raise unknown("config.model.level_code", level_code, embed.LEVEL_CODES)
    sizes, kwargs = embed.encoder_sizes(variant, kwargs)
    embed.check(image_size, patch_size, conditioning, attention, dtype)
    return ViTMAE(
        image_size=image_size,
        patch_size=patch_size,
        conditioning=conditioning,
        level_code=level_code,
        attention=attention,
        dtype=jnp.dtype(dtype),
        **sizes,
        **kwargs,
    )


def flops_per_image(model: ViTMAE, mask_ratio: float, training: bool = True) -> float:
    """Floating-point operations of the matrix products for one image (2 per multiply-add).

    A training step is three forward passes (forward, and twice that for the backward pass). The
    patch embedding is counted for all patches, as a convolution does it.
    """

    L = model.grid**2
    pixels = model.patch_size**2 * model.in_chans
    encoder_tokens = model.num_prefix + masking.num_kept(L, mask_ratio)
    decoder_tokens = model.num_decoder_prefix + L
    forward = (
        2 * L * pixels * model.embed_dim
        + embed.block_flops(encoder_tokens, model.embed_dim, model.depth, model.mlp_ratio)
        + 2 * encoder_tokens * model.embed_dim * model.decoder_embed_dim
        + embed.block_flops(
            decoder_tokens, model.decoder_embed_dim, model.decoder_depth, model.mlp_ratio
        )
        + 2 * L * model.decoder_embed_dim * pixels
    )
    return forward * (3 if training else 1)
