"""DiffMAE (Wei et al. 2023, arXiv 2304.03283): a ViT encoder of the visible patches, and a denoising decoder.

The decoder gets the masked patches with noise of a known strength and predicts them without it. Its blocks see the
encoder's tokens by cross-attention. No code was published; what the paper leaves open is a field here.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax.errors import unknown
from deblur_mae_jax.models import attention, embed, layers, masking, position, vit, vit_mae
from deblur_mae_jax.models.contract import Rules

KINDS = ("reconstruct",)
AXES = 2
DECODERS = ("cross_self", "cross", "joint")
SKIPS = ("u_shape", "last")
TIMES = ("addition", "token", "none")


class CrossAttention(nn.Module):
    """Attention of `y` `(B, M, D)` to the tokens `memory` `(B, N, D)`."""

    num_heads: int
    dtype: Any = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(self, y, memory):
        B, M, D = y.shape
        shape = (self.num_heads, D // self.num_heads)
        q = layers.dense(D, self.dtype, "q")(y).reshape(B, M, *shape)
        kv = layers.dense(2 * D, self.dtype, "kv")(memory).reshape(B, memory.shape[1], 2, *shape)
        # The other implementations are for as many queries as keys.
        implementation = self.implementation if self.implementation == "cudnn" else "xla"
        out = attention.attend(q, kv[:, :, 0], kv[:, :, 1], implementation)
        return layers.dense(D, self.dtype, "proj")(out.reshape(B, M, D))


class CrossBlock(nn.Module):
    """Cross-attention, then self-attention if `sees_itself`, then an MLP; each after a norm."""

    num_heads: int
    mlp_ratio: float = 4.0
    sees_itself: bool = True
    dtype: Any = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(self, y, memory):
        norm = lambda name: layers.layer_norm(name, self.dtype)
        cross = CrossAttention(self.num_heads, self.dtype, self.implementation, name="cross_attn")
        y = y + cross(norm("norm_cross")(y), memory)
        if self.sees_itself:
            attention = layers.Attention(self.num_heads, self.dtype, self.implementation, name="attn")
            y = y + attention(norm("norm1")(y))
        mlp = layers.Mlp(int(y.shape[-1] * self.mlp_ratio), self.dtype, name="mlp")
        return y + mlp(norm("norm2")(y))


class Link(nn.Module):
    """What a decoder block sees of an encoder block: a norm and a linear layer."""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        return layers.dense(self.features, self.dtype, "proj")(layers.layer_norm("norm", self.dtype)(x))


class ViTDiffMAE(vit.Encoder):
    """Encoder and denoising decoder. Build it with `Model`.

    decoder: "cross_self" attends to the visible tokens, then among the noisy ones; "cross" to the visible tokens only;
        "joint" among all of them together.
    time: how the strength of the noise is told: "addition" to the noisy tokens, a "token", or "none".
    skip: "u_shape": the first decoder block sees the last encoder block, the second the one before, and so on;
        "last": all see the last one.
    """

    decoder_embed_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    decoder: str = "cross_self"
    time: str = "addition"
    skip: str = "u_shape"

    def setup(self):
        self._encoder(learned_positions=False)
        self.norm = layers.layer_norm(None, self.dtype)
        D, heads = self.decoder_embed_dim, self.decoder_num_heads
        self.decoder_noisy_embed = layers.dense(D, self.dtype)
        if self.time != "none":
            self.decoder_time = layers.dense(D, self.dtype)
        joint = self.decoder == "joint"
        count = 1 if joint or self.skip == "last" else min(self.decoder_depth, self.depth)
        self.decoder_links = [Link(D, self.dtype) for _ in range(count)]
        if joint:
            block = self._block()
            blocks = [block(heads, self.mlp_ratio, self.dtype, self.attention) for _ in range(self.decoder_depth)]
        else:
            cross, itself = (nn.remat(CrossBlock) if self.remat else CrossBlock), self.decoder == "cross_self"
            blocks = [
                cross(heads, self.mlp_ratio, itself, self.dtype, self.attention) for _ in range(self.decoder_depth)
            ]
        self.decoder_blocks = blocks
        self.decoder_norm = layers.layer_norm(None, self.dtype)
        self.decoder_pred = layers.dense(self.patch_size**2 * self.in_chans, self.dtype)

    def states(self, images, ids_keep=None, level=None):
        """`(B, H, W, C)` -> the tokens after each encoder block, `(B, num_prefix + K, D)`; the last are normalised.

        ids_keep: `(B, K)`, the visible patches; `None` keeps all, in order.
        level: blur level of each image `(B,)`, required if the model is conditioned.
        """
        patches = masking.patchify(images, self.patch_size)
        table = jnp.asarray(self.position_table()[self.num_prefix :], self.dtype)
        if ids_keep is not None:
            patches, table = masking.take_patches(patches, ids_keep), jnp.take(table, ids_keep, axis=0)
        x = self.patch_embed(patches) + table
        prefix = [self._cls(images.shape[0])]
        if self.conditioning != "none":
            code = self._code(level)[:, None].astype(self.dtype)
            if self.conditioning == "addition":
                x = x + code
            else:
                prefix.append(code)
        x, out = jnp.concatenate([*prefix, x], axis=1), []
        for block in self.blocks:
            x = block(x)
            out.append(x)
        return [*out[:-1], self.norm(x)]

    def encode(self, images, ids_keep=None, level=None):
        """The last of `states`."""
        return self.states(images, ids_keep, level)[-1]

    def denoise(self, states, noisy, ids_mask, step):
        """Predict patches from noisy ones: `(B, M, P*P*C)` -> `(B, M, P*P*C)` float32.

        states: the tokens of the visible patches.
        ids_mask: places of the noisy patches `(B, M)`.
        step: strength of the noise of each image `(B,)`, a step of the diffusion.
        """
        table = jnp.asarray(position.sincos_2d(self.decoder_embed_dim, self.grid, 0), self.dtype)
        y = self.decoder_noisy_embed(noisy) + jnp.take(table, ids_mask, axis=0)
        count = y.shape[1]
        if self.time != "none":
            code = self.decoder_time(position.sincos_level(step, self.decoder_embed_dim))[:, None].astype(self.dtype)
            y = y + code if self.time == "addition" else jnp.concatenate([code, y], axis=1)
        if self.decoder == "joint":
            y = jnp.concatenate([self.decoder_links[0](states[-1]), y], axis=1)
            for block in self.decoder_blocks:
                y = block(y)
        else:
            seen = [link(state) for link, state in zip(self.decoder_links, states[::-1], strict=False)]
            for number, block in enumerate(self.decoder_blocks):
                y = block(y, seen[min(number, len(seen) - 1)])
        return self.decoder_pred(self.decoder_norm(y[:, -count:])).astype(jnp.float32)

    def features(self, images, level=None, pool="mean"):
        """As of `vit_mae.ViTMAE`."""
        x = self.encode(images, None, level).astype(jnp.float32)
        if pool == "none":
            return x
        return x[:, self.num_prefix :].mean(axis=1) if pool == "mean" else x[:, 0]

    def __call__(self, images, noise=None, mask_ratio: float = 0.0, level=None, noisy=None, step=None):
        """Reconstruct `(B, H, W, C)` normalised images: patches `(B, L, P*P*C)`, the visible ones as they are.

        noise: `(B, L)`, uniform draws that choose the masked patches; not needed at mask_ratio 0.
        mask_ratio: share of the patches that are masked.
        noisy: all patches with noise `(B, L, P*P*C)`; those of masked places are used. None: zeros.
        step: strength of that noise `(B,)`. None: 1.
        out: `latent`, `mask` `(B, L)` (1 = masked) and `ids_restore`.
        """
        B, L = images.shape[0], self.num_patches
        patches = masking.patchify(images, self.patch_size)
        noise = jnp.broadcast_to(jnp.arange(L, dtype=jnp.float32), (B, L)) if noise is None else noise
        ids_keep, mask, ids_restore = masking.random_masking(noise, mask_ratio)
        states = self.states(images, ids_keep, level)
        ids_mask = jnp.argsort(noise, axis=1)[:, ids_keep.shape[1] :]
        out = {"latent": states[-1], "mask": mask, "ids_restore": ids_restore}
        if not ids_mask.shape[1] and not self.is_initializing():
            return patches, out
        hidden = masking.take_patches(jnp.zeros_like(patches) if noisy is None else noisy, ids_mask)
        pred = self.denoise(states, hidden, ids_mask, jnp.ones(B, jnp.int32) if step is None else step)
        return assembled(patches, pred, ids_keep, ids_restore), out


def assembled(patches: jax.Array, hidden: jax.Array, ids_keep: jax.Array, ids_restore: jax.Array) -> jax.Array:
    """All patches `(B, L, P*P*C)`: the visible ones of `patches`, and `hidden` `(B, M, P*P*C)` elsewhere."""
    visible = masking.take_patches(patches, ids_keep)
    return masking.take_patches(jnp.concatenate([visible, hidden], axis=1), ids_restore)


def Model(variant: str = "B", **fields: Any) -> ViTDiffMAE:
    """A ViT by size: variant "Ti", "S", "B", "L" or "H"; other fields of `ViTDiffMAE` by name."""
    for name, choices in (("decoder", DECODERS), ("skip", SKIPS), ("time", TIMES)):
        if fields.get(name, choices[0]) not in choices:
            raise unknown(f"config.model.{name}", fields[name], choices)
    return embed.build(ViTDiffMAE, variant, fields)


def flops_per_image(model: ViTDiffMAE, mask_ratio: float, training: bool = True) -> float:
    """Operations of the matrix products for one image (2 per multiply-add)."""
    L, D, pixels = model.num_patches, model.decoder_embed_dim, model.patch_size**2 * model.in_chans
    seen = model.num_prefix + masking.num_kept(L, mask_ratio)
    hidden = L - masking.num_kept(L, mask_ratio) + (model.time == "token")
    links = 1 if model.decoder == "joint" or model.skip == "last" else min(model.decoder_depth, model.depth)
    forward = 2 * L * pixels * model.embed_dim + embed.block_flops(
        seen, model.embed_dim, model.depth, model.mlp_ratio
    )  # fmt: skip
    forward += 2 * links * seen * model.embed_dim * D + 4 * hidden * pixels * D
    if model.decoder == "joint":
        forward += embed.block_flops(seen + hidden, D, model.decoder_depth, model.mlp_ratio)
    else:
        cross = 2 * D * D * (2 * hidden + 2 * seen) + 4 * hidden * seen * D
        itself = 8 * hidden * D * D + 4 * hidden**2 * D if model.decoder == "cross_self" else 0
        forward += model.decoder_depth * (cross + itself + 4 * model.mlp_ratio * hidden * D * D)
    return float(forward * (3 if training else 1))


def tables(model: ViTDiffMAE) -> dict[str, np.ndarray]:
    """The fixed position table of the encoder."""
    return {"pos_embed": model.position_table()[None]}


RULES = Rules(
    undecayed=vit.TOKENS, layers=vit.layers_of, heads=("head",), adapt=vit_mae.adapt, tables=tables,
    encodes=vit.RULES.encodes,
)  # fmt: skip
