"""BEiT's Vision Transformer (Bao et al. 2022): relative positions and layer scale. SimMIM and USFM use it too.

It has no table of positions. A learned bias for every offset between two patches is added to the scores of attention,
from a table of every block (`positions="relative"`) or one that all blocks share (`"relative_shared"`, SimMIM's
pre-training). The keys have no bias. Parameter names are those of BEiT's code, which timm has too.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.models import backbone, embed, layers, swin2d, vit
from deblur_mae_jax.models.contract import Adapted, Flat, Rules

KINDS = ("classify",)
AXES = 2
POSITIONS = ("relative", "relative_shared")
LAYER_SCALE = 0.1
TABLE = "relative_position_bias_table"
SHARED = f"rel_pos_bias/{TABLE}"
# Rows of a table after those of the offsets: cls to patch, patch to cls, cls to cls.
CLS_ROWS = 3


def relative_index(grid: tuple[int, ...], prefix: int) -> np.ndarray:
    """Row of the table for every pair of tokens `(N, N)`. The blur token has the rows of the cls token.

    grid: rows and columns of patches.
    prefix: tokens before the patches.
    """
    patches, offsets = swin2d.relative_index(grid), swin2d.offsets(grid)
    index = np.full((prefix + len(patches),) * 2, offsets + 2, np.int32)
    index[prefix:, prefix:] = patches
    index[:prefix, prefix:] = offsets
    index[prefix:, :prefix] = offsets + 1
    return index


def bias_of(owner: nn.Module, num_heads: int, grid: tuple[int, ...], prefix: int) -> jax.Array:
    """The bias of the scores `(heads, N, N)`, from a table that is a parameter of `owner`."""
    table = owner.param(TABLE, nn.initializers.zeros, (swin2d.offsets(grid) + CLS_ROWS, num_heads))
    index = relative_index(grid, prefix)
    return jnp.take(table, index.reshape(-1), axis=0).reshape(*index.shape, num_heads).transpose(2, 0, 1)


class SharedBias(nn.Module):
    """The bias that all blocks share."""

    num_heads: int
    grid: tuple[int, ...]
    prefix: int

    @nn.compact
    def __call__(self):
        return bias_of(self, self.num_heads, self.grid, self.prefix)


class Attention(nn.Module):
    """Self-attention with a bias of the scores.

    number: of the block, from 0; the output is initialised smaller in later blocks.
    own: whether it has a table.
    """

    num_heads: int
    grid: tuple[int, ...]
    prefix: int
    number: int
    own: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, shared=None):
        """x `(B, N, D)`; shared `(heads, N, N)`: a bias for all blocks."""
        B, N, D = x.shape
        q_bias, v_bias = (self.param(name, nn.initializers.zeros, (D,)) for name in ("q_bias", "v_bias"))
        qkv = layers.dense(3 * D, self.dtype, "qkv", backbone.normal, use_bias=False)(x)
        qkv = layers.shift(qkv, jnp.concatenate([q_bias, jnp.zeros_like(q_bias), v_bias]))
        q, k, v = jnp.moveaxis(qkv.reshape(B, N, 3, self.num_heads, D // self.num_heads), 2, 0)
        if self.own:
            shared = bias_of(self, self.num_heads, self.grid, self.prefix)
        product: Any = jax.nn.dot_product_attention
        x = product(q, k, v, bias=shared[None].astype(self.dtype), implementation="xla")
        return layers.dense(D, self.dtype, "proj", _smaller(self.number))(x.reshape(B, N, D))


def _smaller(number: int) -> Any:
    """BEiT's initialisation of the layers before each sum, in the block of this number."""
    return nn.initializers.normal(0.02 / (2.0 * (number + 1)) ** 0.5)


class Mlp(nn.Module):
    """Two dense layers with a GELU between them."""

    hidden_dim: int
    number: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        D = x.shape[-1]
        x = layers.gelu(layers.dense(self.hidden_dim, self.dtype, "fc1", backbone.normal)(x))
        return layers.dense(D, self.dtype, "fc2", _smaller(self.number))(x)


class Block(nn.Module):
    """Pre-norm transformer block whose branches are scaled by `gamma_1` and `gamma_2`.

    scale `(B, 2)`: factors of the two residual branches of each example, for stochastic depth.
    """

    num_heads: int
    mlp_ratio: float
    layer_scale: float
    grid: tuple[int, ...]
    prefix: int
    number: int
    own: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, shared=None, scale=None):
        D = x.shape[-1]

        def scaled(branch, number):
            if self.layer_scale:
                gamma = self.param(f"gamma_{number + 1}", nn.initializers.constant(self.layer_scale), (D,))
                branch = layers.scaled(branch, gamma)
            return branch if scale is None else branch * scale[:, number, None, None]

        attn = Attention(self.num_heads, self.grid, self.prefix, self.number, self.own, self.dtype, name="attn")
        x = x + scaled(attn(layers.layer_norm("norm1", self.dtype)(x), shared), 0)
        mlp = Mlp(int(D * self.mlp_ratio), self.number, self.dtype, name="mlp")
        return x + scaled(mlp(layers.layer_norm("norm2", self.dtype)(x)), 1)


class Beit(vit.ViT):
    """Encoder and head. Build it with `Model`."""

    positions: str = "relative"
    layer_scale: float = LAYER_SCALE

    def _encoder(self, learned_positions: bool = False, init: Any = embed.token_init) -> None:
        self.cls_token = self.param("cls_token", init, (1, 1, self.embed_dim))
        self._level_code()
        self.patch_embed = embed.PatchEmbed(self.patch_size, self.in_chans, self.embed_dim, self.dtype)
        own = self.positions == "relative"
        if not own:
            self.rel_pos_bias = SharedBias(self.num_heads, self.grid, self.num_prefix)
        block = nn.remat(Block) if self.remat else Block
        sizes = (self.num_heads, self.mlp_ratio, self.layer_scale, self.grid, self.num_prefix)
        self.blocks = [block(*sizes, number, own, self.dtype) for number in range(self.depth)]

    def hidden(self, images, level=None, mix=None, drop_path_keys=None, hide=None):
        x = self._tokens(images, level, mix, hide)
        shared = self.rel_pos_bias() if self.positions == "relative_shared" else None
        states = []
        for block, scale in zip(self.blocks, self._scales(drop_path_keys), strict=True):
            x = block(x, shared, scale)
            states.append(x)
        return states


def check(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a network. Raises `UserError`."""
    if fields.get("attention", "auto") not in ("auto", "xla"):
        raise UserError(
            f"config.model.attention={fields['attention']}: relative positions add a bias to the scores, which it does "
            "not take. Choices: auto, xla"
        )
    scale = LAYER_SCALE if fields.get("layer_scale") is None else fields["layer_scale"]
    if scale < 0:
        raise UserError(f"config.model.layer_scale={scale} must be 0 (none) or greater")
    return fields | {"layer_scale": scale}


def Model(variant: str = "B", *, positions: str = "relative", drop_path: float = 0.0, **fields: Any) -> Beit:
    """A BEiT by size: variant "Ti", "S", "B", "L" or "H"; other fields of `Beit` by name."""
    if positions not in POSITIONS:
        raise unknown("config.model.positions", positions, POSITIONS)
    if not 0 <= drop_path < 1:
        raise UserError(f"config.model.drop_path={drop_path} must be in [0, 1)")
    return embed.build(Beit, variant, check(fields) | {"positions": positions, "drop_path": drop_path})


def flops_per_image(model: Beit, mask_ratio: float = 0.0, training: bool = True) -> float:
    """Floating-point operations of the matrix products for one image (2 per multiply-add)."""
    return vit.flops_per_image(model, mask_ratio, training)


def resized(table: np.ndarray, before: tuple[int, ...], grid: tuple[int, ...]) -> np.ndarray:
    """A table of biases for another number of patches, as timm resizes it; the rows of the cls token stay.

    before: rows and columns of patches of the table.
    grid: those wanted.
    """
    patches, cls = table[:-CLS_ROWS], table[-CLS_ROWS:]
    return np.concatenate([swin2d.resized(patches, before, grid), cls])


def adapt(weights: Flat, needed: Flat, before: Any, model: Beit) -> Adapted:
    """All parameters but the head. A table that all blocks shared is copied to every block, as in SimMIM's code.

    Tables are resized for another number of patches.
    """
    absent = [name for name in ("norm/", "fc_norm/") if not any(k.startswith(name) for k in needed)]
    out = {k: v for k, v in weights.items() if not k.startswith(tuple(absent))} if absent else dict(weights)
    if SHARED in out and SHARED not in needed:
        table = out.pop(SHARED)
        out |= {name: table for name in needed if name.endswith(f"attn/{TABLE}")}
    changed = [k for k, v in out.items() if k.endswith(TABLE) and k in needed and v.shape != tuple(needed[k].shape)]
    out |= {name: resized(np.asarray(out[name]), before.grid, model.grid) for name in changed}
    note = f"{len(changed)} {TABLE}, from {sides.written(before.grid)} to {sides.written(model.grid)}"
    return Adapted(out, lambda name: name.startswith(vit.HEADS), note if changed else "")


RULES = Rules(
    undecayed=(*vit.TOKENS, TABLE), layers=vit.layers_of, heads=("head",), adapt=adapt, encodes=vit.RULES.encodes,
)  # fmt: skip
