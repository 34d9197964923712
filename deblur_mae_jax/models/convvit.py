"""ConvViT, the hybrid encoder of ConvMAE (Gao et al. 2022), and the classifier made of it.

Two stages of convolutions, at a quarter and an eighth of the image's sides, precede transformer blocks at a sixteenth.
There is no cls token. Parameter names are those of ConvMAE's code, with "_" before numbers where it has ".".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.models import backbone, embed, layers, masking, position, swin, vit
from deblur_mae_jax.models.contract import Adapted, Flat, Rules
from deblur_mae_jax.models.convolution import Convolution

KINDS = ("classify",)
AXES = 2
PATCH = 16
# Sides of the patches of the two convolutional stages, pixels, and of the steps to each next stage.
SIDES, STEPS = (4, 8), (4, 2, 2)
# Width of each stage, blocks of each stage, attention heads of the last.
VARIANTS = {"B": ((256, 384, 768), (2, 2, 11), 12)}
KERNEL = 5
# PyTorch's initialisation of a convolution.
uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _bias_init(fan_in: int) -> Any:
    bound = fan_in**-0.5
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)


def _xavier(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """ConvMAE's initialisation of the last patch embedding: that of the matrix which maps flattened patches."""
    return layers.xavier(key, (math.prod(shape[:-1]), shape[-1]), dtype).reshape(shape)


def convolution(
    features: int, inputs: int, side: int, stride: int, *, dtype: Any, name: str | None = None, depthwise: bool = False,
    init: Any = uniform,
) -> Convolution:  # fmt: skip
    """A convolution with PyTorch's padding and initialisation.

    inputs: channels of the input.
    depthwise: each channel has a kernel of its own.
    """
    padding = side // 2 if stride == 1 else 0
    groups = inputs if depthwise else 1
    return Convolution(
        features, side, stride, padding, groups, kernel_init=init,
        bias_init=_bias_init(inputs // groups * side**2), dtype=dtype, name=name,
    )  # fmt: skip


class Embedding(nn.Module):
    """A convolution as large as its stride, a norm and a GELU."""

    features: int
    step: int
    dtype: Any = jnp.float32
    init: Any = uniform

    @nn.compact
    def __call__(self, x):
        x = convolution(
            self.features, x.shape[-1], self.step, self.step, dtype=self.dtype, name="proj", init=self.init
        )(x)
        return layers.gelu(swin.layer_norm(self.dtype, "norm")(x))


class ConvMlp(nn.Module):
    """Two convolutions of 1 x 1 with a GELU between them."""

    hidden: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        C = x.shape[-1]
        x = layers.gelu(convolution(self.hidden, C, 1, 1, dtype=self.dtype, name="fc1")(x))
        return convolution(C, self.hidden, 1, 1, dtype=self.dtype, name="fc2")(x)


class ConvBlock(nn.Module):
    """A depthwise convolution of 5 x 5 in place of attention, which does not see masked places; and an MLP.

    visible `(B, H, W, 1)`: 1 where the image may be seen.
    scale `(B, 2)`: factors of the two residual branches of each example, for stochastic depth.
    """

    mlp_ratio: float = 4.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, visible=None, scale=None):
        C = x.shape[-1]
        y = convolution(C, C, 1, 1, dtype=self.dtype, name="conv1")(swin.layer_norm(self.dtype, "norm1")(x))
        y = y if visible is None else y * visible.astype(y.dtype)
        y = convolution(C, C, KERNEL, 1, dtype=self.dtype, name="attn", depthwise=True)(y)
        y = convolution(C, C, 1, 1, dtype=self.dtype, name="conv2")(y)
        x = backbone.residual(x, y, None if scale is None else scale[:, 0])
        mlp = ConvMlp(int(C * self.mlp_ratio), self.dtype, name="mlp")
        return backbone.residual(
            x, mlp(swin.layer_norm(self.dtype, "norm2")(x)), None if scale is None else scale[:, 1]
        )  # fmt: skip


class Hybrid(vit.Encoder):
    """The fields and parameters that classifier and autoencoder share. `depth` and `embed_dim` are the last stage's.

    stem_dims: widths of the two convolutional stages.
    stem_depths: blocks of the two convolutional stages.
    """

    stem_dims: Sequence[int] = (256, 384)
    stem_depths: Sequence[int] = (2, 2)

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: the blur token."""
        return 1 if self.conditioning == "token" else 0

    def _encoder(self, learned_positions: bool, init: Any = embed.token_init) -> None:
        if learned_positions:
            shape = (1, self.num_prefix + self.num_patches, self.embed_dim)
            self.pos_embed = self.param("pos_embed", lambda key, shape: jnp.asarray(self.position_table())[None], shape)
        self._level_code()
        block = nn.remat(ConvBlock) if self.remat else ConvBlock
        for stage, (width, depth) in enumerate(zip(self.stem_dims, self.stem_depths, strict=True), start=1):
            setattr(self, f"patch_embed{stage}", Embedding(width, STEPS[stage - 1], self.dtype))
            setattr(self, f"blocks{stage}", [block(self.mlp_ratio, self.dtype) for _ in range(depth)])
        self.patch_embed3 = Embedding(self.embed_dim, STEPS[2], self.dtype, _xavier)
        self.patch_embed4 = layers.dense(self.embed_dim, self.dtype)
        token_block = self._block()
        self.blocks3 = [
            token_block(self.num_heads, self.mlp_ratio, self.dtype, self.attention) for _ in range(self.depth)
        ]

    def stem(self, images, visible=None, scales=None):
        """The maps of the two convolutional stages, and the patch tokens `(B, L, D)` before positions are added.

        visible: `(B, L)`, 1 for the patches that may be seen; None: all.
        scales: factors of the branches `(B, blocks, 2)`, for stochastic depth.
        """
        x, maps, done = images.astype(self.dtype), [], 0
        for stage, side in enumerate(SIDES, start=1):
            x = getattr(self, f"patch_embed{stage}")(x)
            seen = None if visible is None else masking.spread(visible, self.grid, PATCH // side)
            for number, block in enumerate(getattr(self, f"blocks{stage}")):
                x = block(x, seen, None if scales is None else scales[:, done + number])
            done += self.stem_depths[stage - 1]
            maps.append(x)
        x = self.patch_embed3(x)
        return maps, self.patch_embed4(x.reshape(x.shape[0], -1, x.shape[-1]))


class ConvViT(Hybrid):
    """The classifier: the mean of the patch tokens, a norm and a linear layer. Build it with `Model`."""

    num_classes: int = 0
    drop_path: float = 0.0
    head_init: float = 2e-5

    def setup(self):
        self._encoder(learned_positions=True)
        self.fc_norm = layers.layer_norm(None, jnp.float32)
        self.head = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(self.head_init))

    def pyramid(self, images, level=None, train=False, drop_path_keys=None):
        """`(B, H, W, C)` -> the maps of the three stages `(B, h, w, D)`, and {}."""
        maps, x = self._encoded(images, level, None, drop_path_keys)
        return [*maps, x[:, self.num_prefix :].reshape(len(x), *self.grid, -1)], {}

    def features(self, images, level=None, mix=None, drop_path_keys=None):
        """`(B, H, W, C)` -> features `(B, D)` float32, the input of the head; arguments as of `vit.ViT.hidden`."""
        x = self._encoded(images, level, mix, drop_path_keys)[1]
        return self.fc_norm(x[:, self.num_prefix :].astype(jnp.float32).mean(axis=1))

    def _encoded(self, images, level, mix, drop_path_keys):
        """The maps of the convolutional stages, and the tokens after the last block `(B, num_prefix + L, D)`."""
        scales, before = None, sum(self.stem_depths)
        if drop_path_keys is not None and self.drop_path > 0:
            scales = vit.drop_path_scales(drop_path_keys, self.drop_path, before + self.depth).astype(self.dtype)
        maps, x = self.stem(images, scales=scales)
        if self.conditioning != "none":
            code = self._code(level)
            if mix is not None:
                weight = mix[1][:, None]
                code = weight * code + (1 - weight) * self._code(mix[0])
            code = code[:, None].astype(self.dtype)
            x = x + code if self.conditioning == "addition" else jnp.concatenate([code, x], axis=1)
        x = x + self.pos_embed.astype(self.dtype)
        for number, block in enumerate(self.blocks3):
            x = block(x) if scales is None else block(x, scales[:, before + number])
        return maps, x

    def __call__(self, images, level=None, *, mix=None, drop_path_keys=None, train=False, frozen=False, encoded=None):
        """`(B, H, W, C)` -> logits `(B, num_classes)` float32.

        encoded: `features` of the images `(B, D)`, if they are known.
        """
        x = self.features(images, level, mix, drop_path_keys) if encoded is None else encoded
        return self.head(jax.lax.stop_gradient(x) if frozen else x), {"assign": {}}


def sized(network: Any, variant: str, fields: dict[str, Any]) -> Any:
    """Build `network(**fields)` with the sizes of a variant. Raises `UserError`."""
    name = variant or "B"
    if name not in VARIANTS:
        raise unknown("config.model.variant", name, VARIANTS)
    widths, depths, heads = VARIANTS[name]
    sizes = {"stem_dims": widths[:2], "stem_depths": depths[:2], "embed_dim": widths[2], "depth": depths[2],
             "num_heads": heads}  # fmt: skip
    fields = {key: value for key, value in fields.items() if value is not None}
    for key, value in sizes.items():
        fields[key] = tuple(fields.get(key) or value) if isinstance(value, tuple) else fields.get(key) or value
    if len(fields["stem_dims"]) != 2 or len(fields["stem_depths"]) != 2:
        raise UserError(
            f"config.model.stem_dims={fields['stem_dims']} and config.model.stem_depths={fields['stem_depths']} must "
            "have two numbers, one for each convolutional stage"
        )
    if fields["embed_dim"] % fields["num_heads"] or fields["embed_dim"] % 4:
        raise UserError(
            f"config.model.embed_dim={fields['embed_dim']} must be divisible by 4 and by "
            f"config.model.num_heads={fields['num_heads']}"
        )
    if fields.get("patch_size", PATCH) != PATCH:
        raise UserError(f"config.model.patch_size={fields['patch_size']}: a ConvViT has patches of {PATCH} pixels")
    model = network(**fields | {"patch_size": PATCH, "dtype": jnp.dtype(fields.get("dtype", "float32"))})
    embed.check(model)
    return model


def Model(variant: str = "B", *, pool: str = "mean", drop_path: float = 0.0, **fields: Any) -> ConvViT:
    """A ConvViT by size: variant "B"; other fields of `ConvViT` by name."""
    if pool != "mean":
        raise UserError(f"config.model.pool={pool}: a ConvViT has no cls token. Choices: mean")
    if fields.pop("probe", False):
        raise UserError("config.model.probe=True: a ConvViT has no BatchNorm before its head. Choices: False")
    if not 0 <= drop_path < 1:
        raise UserError(f"config.model.drop_path={drop_path} must be in [0, 1)")
    return sized(ConvViT, variant, fields | {"drop_path": drop_path})


def encoder_flops(model: Hybrid, tokens: int) -> float:
    """Operations of the encoder for one image (2 per multiply-add), with `tokens` in the transformer blocks."""
    total, before = 0.0, model.in_chans
    for width, depth, side, step in zip(model.stem_dims, model.stem_depths, SIDES, STEPS, strict=False):
        places = sides.count(model.image_size, side)
        total += 2 * places * step**2 * before * width
        total += depth * 2 * places * width * (width * (2 + 2 * model.mlp_ratio) + KERNEL**2)
        before = width
    D, L = model.embed_dim, model.num_patches
    total += 2 * L * D * (STEPS[2] ** 2 * before + D)
    return total + embed.block_flops(tokens, D, model.depth, model.mlp_ratio)


def flops_per_image(model: ConvViT, mask_ratio: float = 0.0, training: bool = True) -> float:
    """Operations of convolutions and matrix products for one image (2 per multiply-add)."""
    forward = encoder_flops(model, model.num_prefix + model.num_patches) + 2 * model.embed_dim * model.num_classes
    return forward * (3 if training else 1)


def layers_of(model: Hybrid) -> tuple[int, Callable[[str], int]]:
    """Layers for layer-wise learning rates: all that precedes the transformer blocks, each of these, and the rest."""

    def layer(name: str) -> int:
        top = name.split("/")[0]
        found = re.fullmatch(r"blocks3_(\d+)", top)
        if found:
            return int(found[1]) + 1
        first = top in vit.TOKENS or top.startswith(("patch_embed", "blocks1_", "blocks2_"))
        return 0 if first else model.depth + 1

    return model.depth + 1, layer


# What an autoencoder has in addition to its classifier's parameters.
ONLY_PRETRAINING = ("decoder_", "mask_token", "stage1_output_decode", "stage2_output_decode", "norm/")


def adapt(weights: Flat, needed: Flat, before: Any, model: ConvViT) -> Adapted:
    """The parameters that a classifier can load from any ConvViT; the position table is resized."""
    weights = {k: v for k, v in weights.items() if not k.startswith(ONLY_PRETRAINING)}
    table = weights.get("pos_embed")
    if table is None:  # pre-training networks have a fixed one
        table = position.sincos_2d(before.embed_dim, before.grid, before.num_prefix)[None]
    table = position.resize_table(np.asarray(table), before.grid, model.grid, before.num_prefix)
    table = position.with_prefix(table, before.num_prefix, model.num_prefix)
    resized = ""
    if before.grid != model.grid:
        resized = f"pos_embed from {sides.written(before.grid)} to {sides.written(model.grid)}"
    return Adapted(weights | {"pos_embed": table}, lambda k: k.startswith(("head", "fc_norm")), resized)


STEM, SHIFT = "patch_embed1/proj/kernel", ("patch_embed1/proj/bias", 1.0)
RULES = Rules(
    undecayed=vit.TOKENS, layers=layers_of, heads=("head",), adapt=adapt, stem=STEM, shift=SHIFT,
    encodes=lambda name: not name.startswith((*ONLY_PRETRAINING, "head", "fc_norm")),
)  # fmt: skip
