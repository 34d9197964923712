"""Masked autoencoder with a ViT encoder and decoder (He et al. 2022), and D2MAE's blur token.

Parameter names and layouts are PyTorch's up to a rename and a transpose (`weight_formats/names.py`). The position
tables are constants, not parameters. The network does not depend on the training method: its inputs
are images, masking noise and, for some methods, a blur level.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import embed, layers, masking, position, vit
from deblur_mae_jax.models.contract import Adapted, Flat, Rules

KINDS = ("reconstruct",)
AXES = 2


class ViTMAE(vit.Encoder):
    """Encoder and decoder. Build it with `Model`."""

    decoder_embed_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    decoder_level_token: bool = True

    @property
    def num_decoder_prefix(self) -> int:
        """Tokens before the patches in the decoder."""
        return self.num_prefix if self.decoder_level_token else 1

    def setup(self):
        self._encoder(learned_positions=False)
        block = self._block()
        self.norm = layers.layer_norm(None, self.dtype)
        self.decoder_embed = layers.dense(self.decoder_embed_dim, self.dtype)
        self.mask_token = self.param("mask_token", embed.token_init, (1, 1, self.decoder_embed_dim))
        self.decoder_blocks = [
            block(self.decoder_num_heads, self.mlp_ratio, self.dtype, self.attention) for _ in range(self.decoder_depth)
        ]
        self.decoder_norm = layers.layer_norm(None, self.dtype)
        self.decoder_pred = layers.dense(self.patch_size**2 * self.in_chans, self.dtype)

    def encode(self, images, ids_keep=None, level=None):
        """`(B, H, W, C)` -> `(B, num_prefix + K, D)` tokens after the final norm.

        ids_keep: `(B, K)`, the visible patches; `None` keeps all, in order.
        level: blur level of each image `(B,)`, required if the model is conditioned.
        """
        patches = masking.patchify(images, self.patch_size)
        table = position.sincos_2d(self.embed_dim, self.grid, self.num_prefix)
        patch_table = jnp.asarray(table[None, self.num_prefix :], self.dtype)
        if ids_keep is not None:
            # Only visible patches are embedded; positions are gathered with them.
            patches = masking.take_patches(patches, ids_keep)
            patch_table = jnp.take(patch_table[0], ids_keep, axis=0)
        x = self.patch_embed(patches) + patch_table
        prefix = [self._cls(images.shape[0])]
        if self.conditioning != "none":
            code = self._code(level)[:, None].astype(self.dtype)  # (B, 1, D)
            if self.conditioning == "addition":
                x = x + code
            else:
                prefix.append(code)
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

    def features(self, images, level=None, pool="mean"):
        """`(B, H, W, C)` -> features `(B, D)` float32, without masking.

        level: blur level of each image `(B,)`, required if the model is conditioned.
        pool: "mean" of the patch tokens, "cls", or "none" for all tokens `(B, num_prefix + L, D)`.
        """
        if pool == "cls" and not self.num_prefix:
            raise UserError("pool='cls': this network has no class token. Choices: mean, none.")
        x = self.encode(images, None, level).astype(jnp.float32)
        if pool == "none":
            return x
        return x[:, self.num_prefix :].mean(axis=1) if pool == "mean" else x[:, 0]

    def __call__(self, images, noise=None, mask_ratio: float = 0.0, level=None, drop_path_keys=None):
        """Reconstruct `(B, H, W, C)` normalised images: predicted patches `(B, L, P*P*C)`.

        noise: `(B, L)`, uniform draws that choose the masked patches; not needed at mask_ratio 0.
        mask_ratio: share of the patches that are masked.
        level: as in `encode`.
        drop_path_keys: not used.
        out: `latent`, `mask` `(B, L)` (1 = masked) and `ids_restore`.
        """
        if mask_ratio == 0:
            latent = self.encode(images, None, level)
            mask = jnp.zeros((images.shape[0], self.num_patches))
            ids = jnp.broadcast_to(jnp.arange(self.num_patches), mask.shape)
            return self.decode(latent), {"latent": latent, "mask": mask, "ids_restore": ids}
        ids_keep, mask, ids_restore = masking.random_masking(noise, mask_ratio)
        latent = self.encode(images, ids_keep, level)
        pred = self.decode(latent, ids_keep, ids_restore)
        return pred, {"latent": latent, "mask": mask, "ids_restore": ids_restore}


def Model(variant: str = "B", **fields: Any) -> ViTMAE:
    """A ViT-MAE by size: variant "Ti", "S", "B", "L" or "H"; other fields of `ViTMAE` by name."""
    return embed.build(ViTMAE, variant, fields)


def flops_per_image(model: ViTMAE, mask_ratio: float, training: bool = True) -> float:
    """Floating-point operations of the matrix products for one image (2 per multiply-add).

    A training step is three forward passes (forward, and twice that for the backward pass). The
    patch embedding is counted for all patches, as a convolution does it.
    """

    L = model.num_patches
    pixels = model.patch_size**2 * model.in_chans
    encoder_tokens = model.num_prefix + masking.num_kept(L, mask_ratio)
    decoder_tokens = model.num_decoder_prefix + L
    forward = (
        2 * L * pixels * model.embed_dim
        + embed.block_flops(encoder_tokens, model.embed_dim, model.depth, model.mlp_ratio)
        + 2 * encoder_tokens * model.embed_dim * model.decoder_embed_dim
        + embed.block_flops(decoder_tokens, model.decoder_embed_dim, model.decoder_depth, model.mlp_ratio)
        + 2 * L * model.decoder_embed_dim * pixels
    )
    return forward * (3 if training else 1)


def adapt(weights: Flat, needed: Flat, before: vit.Encoder, model: ViTMAE) -> Adapted:
    """The parameters that an autoencoder can load from any ViT: the encoder, and the decoder if all of it fits."""
    unused = ("pos_embed", *vit.HEADS[:3])
    weights = {k: v for k, v in weights.items() if not k.startswith(unused)}
    decoder = [k for k in weights if k.startswith(vit.DECODER)]
    if not all(k in needed and weights[k].shape == tuple(needed[k].shape) for k in decoder):
        weights = {k: v for k, v in weights.items() if k not in decoder}
    # If the weights have no decoder, it is initialised anew. So are missing parts that code the blur level.
    optional = (*vit.DECODER, "blur_token", "level_embed", "norm/")
    return Adapted(weights, lambda k: k.startswith(optional))


def tables(model: ViTMAE) -> dict[str, np.ndarray]:
    """The fixed position tables, which PyTorch keeps in the state dict."""
    return {
        "pos_embed": position.sincos_2d(model.embed_dim, model.grid, model.num_prefix)[None],
        "decoder_pos_embed": position.sincos_2d(model.decoder_embed_dim, model.grid, model.num_decoder_prefix)[None],
    }


RULES = Rules(
    undecayed=vit.TOKENS, layers=vit.layers_of, heads=("head",), adapt=adapt, tables=tables,
    encodes=vit.RULES.encodes,
)  # fmt: skip
