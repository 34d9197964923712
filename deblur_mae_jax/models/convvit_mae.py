"""ConvMAE (Gao et al. 2022): a masked autoencoder with a ConvViT encoder and MAE's decoder.

One mask of 16 x 16 pixels holds for all stages: convolutions do not see masked places, transformer blocks get the
visible patches only. The maps of the convolutional stages are added to the tokens before the last norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax.models import convvit, embed, masking, position, vit_mae
from deblur_mae_jax.models.contract import Adapted, Flat, Rules

KINDS = ("reconstruct",)
AXES = 2


class ConvMAE(convvit.Hybrid, vit_mae.ViTMAE):
    """Encoder and decoder. Build it with `Model`."""

    stem_dims: Sequence[int] = (256, 384)
    stem_depths: Sequence[int] = (2, 2)

    @property
    def num_decoder_prefix(self) -> int:
        """Tokens before the patches in the decoder."""
        return self.num_prefix if self.decoder_level_token else 0

    def _encoder(self, learned_positions, init=embed.token_init):
        super()._encoder(learned_positions, init)
        for stage, (width, side) in enumerate(zip(self.stem_dims, convvit.SIDES, strict=True), start=1):
            step = convvit.PATCH // side
            layer = convvit.convolution(self.embed_dim, width, step, step, dtype=self.dtype)
            setattr(self, f"stage{stage}_output_decode", layer)

    def encode(self, images, ids_keep=None, level=None):
        """`(B, H, W, C)` -> `(B, num_prefix + K, D)` tokens after the final norm.

        ids_keep: `(B, K)`, the visible patches; `None` keeps all, in order.
        level: blur level of each image `(B,)`, required if the model is conditioned.
        """
        visible = None if ids_keep is None else jax.nn.one_hot(ids_keep, self.num_patches).sum(axis=1)
        maps, x = self.stem(images, visible)
        x = x + jnp.asarray(position.sincos_2d(self.embed_dim, self.grid, 0)[None], self.dtype)
        layers = (self.stage1_output_decode, self.stage2_output_decode)
        added = sum(layer(y).reshape(x.shape) for layer, y in zip(layers, maps, strict=True))
        if ids_keep is not None:
            x, added = masking.take_patches(x, ids_keep), masking.take_patches(added, ids_keep)
        if self.conditioning != "none":
            code = self._code(level)[:, None].astype(self.dtype)
            if self.conditioning == "addition":
                x = x + code
            else:
                x = jnp.concatenate([code, x], axis=1)
                added = jnp.pad(added, ((0, 0), (1, 0), (0, 0)))
        for block in self.blocks3:
            x = block(x)
        return self.norm(x + added)


def Model(variant: str = "B", **fields: Any) -> ConvMAE:
    """A ConvMAE by size: variant "B"; other fields of `ConvMAE` by name."""
    return convvit.sized(ConvMAE, variant, fields)


def flops_per_image(model: ConvMAE, mask_ratio: float, training: bool = True) -> float:
    """Operations of convolutions and matrix products for one image (2 per multiply-add)."""
    L, inner = model.num_patches, model.decoder_embed_dim
    tokens = model.num_prefix + masking.num_kept(L, mask_ratio)
    forward = convvit.encoder_flops(model, tokens)
    for width, side in zip(model.stem_dims, convvit.SIDES, strict=True):
        forward += 2 * L * (convvit.PATCH // side) ** 2 * width * model.embed_dim
    forward += 2 * tokens * model.embed_dim * inner + 2 * L * inner * convvit.PATCH**2 * model.in_chans
    forward += embed.block_flops(model.num_decoder_prefix + L, inner, model.decoder_depth, model.mlp_ratio)
    return forward * (3 if training else 1)


def adapt(weights: Flat, needed: Flat, before: Any, model: ConvMAE) -> Adapted:
    """The parameters that an autoencoder can load from any ConvViT: the encoder, and the decoder if all of it fits."""
    unused = ("pos_embed", "head", "fc_norm")
    weights = {k: v for k, v in weights.items() if not k.startswith(unused)}
    decoder = [k for k in weights if k.startswith(("decoder_", "mask_token"))]
    if not all(k in needed and weights[k].shape == tuple(needed[k].shape) for k in decoder):
        weights = {k: v for k, v in weights.items() if k not in decoder}
    optional = (*convvit.ONLY_PRETRAINING, "blur_token", "level_embed")
    return Adapted(weights, lambda k: k.startswith(optional))


def tables(model: ConvMAE) -> dict[str, np.ndarray]:
    """The fixed position tables, which PyTorch keeps in the state dict."""
    return {
        "pos_embed": position.sincos_2d(model.embed_dim, model.grid, model.num_prefix)[None],
        "decoder_pos_embed": position.sincos_2d(model.decoder_embed_dim, model.grid, model.num_decoder_prefix)[None],
    }


RULES = Rules(
    undecayed=convvit.RULES.undecayed, layers=convvit.layers_of, heads=("head",), adapt=adapt, tables=tables,
    encodes=convvit.RULES.encodes, stem=convvit.STEM, shift=convvit.SHIFT,
)  # fmt: skip
