"""Vision Transformer: the encoder that all ViTs here share, and the classifier (MAE's fine-tuning and probing models).

Parameter names are those of MAE's PyTorch code: `head`, `fc_norm` (mean pooling) or `norm` (cls token).
The position table is a parameter. A linear probe has `head_0` (BatchNorm) before `head_1`. Mean pooling
does not include the blur token.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.models import embed, layers, masking, position
from deblur_mae_jax.models.contract import Adapted, Flat, Rules

POOLS = ("mean", "cls")
KINDS = ("classify",)
AXES = 2
TOKENS = ("cls_token", "pos_embed", "blur_token", "level_embed", "mask_token")
# Parameters of a pre-training network that a network for labels lacks.
DECODER = ("decoder_", "mask_token")
# Parameters of a network for labels that a pre-training network lacks.
HEADS = ("head", "fc_norm", "segmenter", "norm/")


class Encoder(nn.Module):
    """Patches, tokens and blocks: the fields and parameters that all ViTs share."""

    image_size: sides.Size = 224
    patch_size: int = 16
    in_chans: int = 1
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    conditioning: str = "none"
    level_code: str = "learned"
    num_levels: int = 0
    dtype: Any = jnp.float32
    attention: str = "auto"
    remat: bool = False

    @property
    def grid(self) -> tuple[int, ...]:
        """Rows and columns of patches."""
        return sides.divided(self.image_size, self.patch_size)

    @property
    def num_patches(self) -> int:
        """Patches of an image."""
        return sides.count(self.image_size, self.patch_size)

    @property
    def mask_size(self) -> int:
        """Side of the patches that are masked, pixels."""
        return self.patch_size

    @property
    def mask_grid(self) -> tuple[int, ...]:
        """Rows and columns of such patches."""
        return sides.divided(self.image_size, self.mask_size)

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: cls, and the blur token."""
        return 2 if self.conditioning == "token" else 1

    def _block(self) -> Callable[..., Any]:
        """The class of the blocks. Blocks of one shape are traced once, except while their parameters are drawn.

        Flax draws other random numbers inside `nn.jit`.
        """
        block = nn.remat(layers.Block) if self.remat else layers.Block
        return block if self.is_initializing() else nn.jit(block)

    def position_table(self) -> np.ndarray:
        """The table of positions `(num_prefix + L, D)` before training."""
        return position.sincos_2d(self.embed_dim, self.grid, self.num_prefix)

    @property
    def patch_bias_init(self) -> Any:
        """Initialisation of the patch embedding's bias, as in `PatchEmbed`."""
        return None

    def _encoder(self, learned_positions: bool, init: Any = embed.token_init) -> None:
        """Create the encoder's parameters, in the order that their random numbers depend on.

        init: initialisation of the cls token.
        """
        self.cls_token = self.param("cls_token", init, (1, 1, self.embed_dim))
        if learned_positions:

            def table(key, shape):
                return jnp.asarray(self.position_table())[None]

            shape = (1, self.num_prefix + self.num_patches, self.embed_dim)
            self.pos_embed = self.param("pos_embed", table, shape)
        self._level_code()
        self.patch_embed = embed.PatchEmbed(
            self.patch_size, self.in_chans, self.embed_dim, self.dtype, self.patch_bias_init
        )
        block = self._block()
        self.blocks = [block(self.num_heads, self.mlp_ratio, self.dtype, self.attention) for _ in range(self.depth)]

    def _level_code(self) -> None:
        """Create the parameters of the code of the blur level, if the model is conditioned."""
        if self.conditioning != "none":
            if self.level_code == "learned":
                self.blur_token = self.param("blur_token", embed.token_init, (1, 1, self.embed_dim))
            self.level_embed = embed.LevelCode(self.embed_dim, self.level_code, self.num_levels)

    def _cls(self, count: int) -> jax.Array:
        """The cls token of `count` images `(B, 1, D)`."""
        return jnp.broadcast_to(self.cls_token.astype(self.dtype), (count, 1, self.embed_dim))

    def _code(self, level: jax.Array | None) -> jax.Array:
        """The code of the blur levels `(B, D)` float32."""
        if level is None:
            raise ValueError(f"conditioning='{self.conditioning}' needs the level of every image")
        code = self.level_embed(level)
        if self.level_code == "learned":
            code = code + self.blur_token[:, 0]
        return code


def drop_path_rates(rate: float, depth: int) -> np.ndarray:
    """Stochastic depth of each block, from 0 to `rate` linearly `(depth,)` (timm)."""
    return np.linspace(0.0, rate, depth)


def drop_path_scales(keys: jax.Array, rate: float, depth: int) -> jax.Array:
    """Factors `(B, depth, 2)` of the residual branches, from one key per example: 0 or 1 / keep."""
    keep = 1.0 - jnp.asarray(drop_path_rates(rate, depth), jnp.float32)[:, None]
    draws = jax.vmap(lambda key: jax.random.uniform(key, (depth, 2)))(keys)
    return jnp.where(draws < keep, 1.0 / keep, 0.0)


class ViT(Encoder):
    """Encoder and head. Build it with `Model`."""

    num_classes: int = 0
    pool: str = "mean"
    probe: bool = False
    drop_path: float = 0.0
    head_init: float = 2e-5

    def setup(self):
        self._encoder(learned_positions=True)
        self._head()

    def _head(self):
        if self.pool == "mean":
            self.fc_norm = layers.layer_norm(None, jnp.float32)
        else:
            self.norm = layers.layer_norm(None, jnp.float32)
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(self.head_init))
        if self.probe:
            self.head_0, self.head_1 = layers.BatchNorm(), head
        else:
            self.head = head

    def _tokens(self, images, level, mix, hide):
        """The tokens before positions are added `(B, num_prefix + L, D)`; arguments as of `hidden`."""
        x = self.patch_embed(masking.patchify(images, self.patch_size))
        x = x if hide is None else hide(x)
        prefix = [self._cls(images.shape[0])]
        if self.conditioning != "none":
            code = self._code(level)
            if mix is not None:
                weight = mix[1][:, None]
                code = weight * code + (1 - weight) * self._code(mix[0])
            code = code[:, None].astype(self.dtype)
            if self.conditioning == "addition":
                x = x + code
            else:
                prefix.append(code)
        return jnp.concatenate([*prefix, x], axis=1)

    def _scales(self, keys):
        """The factors of the branches of every block, a list of `(B, 2)`, or of None without stochastic depth."""
        if keys is None or self.drop_path == 0:
            return [None] * self.depth
        scales = drop_path_scales(keys, self.drop_path, self.depth).astype(self.dtype)
        return [scales[:, number] for number in range(self.depth)]

    def hidden(self, images, level=None, mix=None, drop_path_keys=None, hide=None):
        """`(B, H, W, C)` -> the tokens after each block, a list of `(B, num_prefix + L, D)`.

        level: blur level of each image `(B,)`, required if the model is conditioned.
        mix: `(levels (B,), weights (B,))`: the levels of the images mixed into these, and the weights of these
            images. The level codes are mixed in the same way.
        drop_path_keys: random keys `(B,)` for stochastic depth, in training.
        hide: a function that is applied to the embedded patches `(B, L, D)`.
        """
        x = self._tokens(images, level, mix, hide) + self.pos_embed.astype(self.dtype)
        states = []
        for block, scale in zip(self.blocks, self._scales(drop_path_keys), strict=True):
            x = block(x, scale)
            states.append(x)
        return states

    def pyramid(self, images, level=None, train=False, drop_path_keys=None):
        """`(B, H, W, C)` -> four maps `(B, h, w, D)` of the same sides, after each quarter of the blocks; and {}."""
        states = self.hidden(images, level, None, drop_path_keys)
        chosen = [states[max(1, round(self.depth * quarter / 4)) - 1] for quarter in range(1, 5)]
        return [x[:, self.num_prefix :].reshape(len(x), *self.grid, -1) for x in chosen], {}

    def features(self, images, level=None, mix=None, drop_path_keys=None):
        """`(B, H, W, C)` -> pooled and normalised features `(B, D)` float32; arguments as of `hidden`."""
        x = self.hidden(images, level, mix, drop_path_keys)[-1]
        if self.pool == "mean":
            return self.fc_norm(x[:, self.num_prefix :].astype(jnp.float32).mean(axis=1))
        return self.norm(x[:, 0].astype(jnp.float32))

    def __call__(self, images, level=None, *, mix=None, drop_path_keys=None, train=False, frozen=False, encoded=None):
        """`(B, H, W, C)` -> logits `(B, num_classes)` float32.

        encoded: `features` of the images `(B, D)`, if they are known.
        out: `assign`, the new running statistics of a linear probe in training.
        """
        x = self.features(images, level, mix, drop_path_keys) if encoded is None else encoded
        if frozen:
            x = jax.lax.stop_gradient(x)
        if self.probe:
            x, new = self.head_0(x, train)
            return self.head_1(x), {"assign": {"head_0": new} if new else {}}
        return self.head(x), {"assign": {}}


def Model(variant: str = "B", *, pool: str = "mean", drop_path: float = 0.0, **fields: Any) -> ViT:
    """A ViT classifier by size: variant "Ti", "S", "B", "L" or "H"; other fields of `ViT` by name."""
    if pool not in POOLS:
        raise unknown("config.model.pool", pool, POOLS)
    if not 0 <= drop_path < 1:
        raise UserError(f"config.model.drop_path={drop_path} must be in [0, 1)")
    return embed.build(ViT, variant, fields | {"pool": pool, "drop_path": drop_path})


def flops_per_image(model: ViT, mask_ratio: float = 0.0, training: bool = True) -> float:
    """Floating-point operations of the matrix products for one image (2 per multiply-add)."""
    L = model.num_patches
    forward = (
        2 * L * model.patch_size**2 * model.in_chans * model.embed_dim
        + embed.block_flops(model.num_prefix + L, model.embed_dim, model.depth, model.mlp_ratio)
        + 2 * model.embed_dim * model.num_classes
    )
    return forward * (3 if training else 1)


def layers_of(model: Encoder) -> tuple[int, Callable[[str], int]]:
    """MAE's layers for layer-wise learning rates.

    Layer 0 has the tokens, the position table and the patch embedding. Layer i + 1 is block i. The last layer has
    everything after the blocks.
    """

    def layer(name: str) -> int:
        top = name.split("/")[0]
        block = re.fullmatch(r"blocks_(\d+)", top)
        if block:
            return int(block[1]) + 1
        return 0 if top in (*TOKENS, "patch_embed") else model.depth + 1

    return model.depth + 1, layer


def adapt(weights: Flat, needed: Flat, before: Encoder, model: Encoder) -> Adapted:
    """The parameters that a network for labels can load from any ViT: encoder, position table and head.

    The position table is resized as in MAE's code.
    """
    absent = [name for name in ("segmenter/", "norm/", "fc_norm/") if not any(k.startswith(name) for k in needed)]
    weights = {k: v for k, v in weights.items() if not k.startswith((*DECODER, *absent))}
    table = weights.get("pos_embed")
    if table is None:  # pre-training networks have a fixed one
        table = position.sincos_2d(before.embed_dim, before.grid, before.num_prefix)[None]
    table = position.resize_table(np.asarray(table), before.grid, model.grid, before.num_prefix)
    table = position.with_prefix(table, before.num_prefix, model.num_prefix)
    resized = ""
    if before.grid != model.grid:
        resized = f"pos_embed from {sides.written(before.grid)} to {sides.written(model.grid)}"
    return Adapted(weights | {"pos_embed": table}, lambda k: k.startswith(HEADS), resized)


RULES = Rules(
    undecayed=TOKENS, layers=layers_of, heads=("head", "segmenter/out/"), adapt=adapt,
    encodes=lambda name: not name.startswith((*DECODER, *HEADS)), attends=True,
)  # fmt: skip
