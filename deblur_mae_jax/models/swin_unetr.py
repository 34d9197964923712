"""Swin-UNETR (Hatamizadeh et al. 2022) in 3-D, as in MONAI and Disruptive Autoencoders; channels last.

Parameter names are MONAI's (`swinViT/layers1/0/blocks_0/attn/qkv`), so weights are converted by a rename and a
transpose. Two published networks are settings of one class:

| | MONAI (fine-tuning) | DAE pre-training |
|---|---|---|
| patch_embed | `conv`: 2x2x2 | `unet_basic`: two 3x3x3 convolutions with norms |
| normalize | yes: LayerNorm on the decoder's inputs | no |
| merge_order | `monai15` (`legacy` up to 1.4) | `legacy` |
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.models import conv3d, swin
from deblur_mae_jax.models.contract import Adapted, Flat, Rules

PATCH_EMBEDS = ("conv", "unet_basic")
SKIPS = ("disrupted", "none")
LAYOUTS = ("intended", "as_coded")
AXES = 3
KINDS = ("reconstruct", "segment")


class PatchEmbed(nn.Module):
    """A volume to tokens at half its side."""

    features: int
    kind: str = "conv"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        if self.kind == "unet_basic":
            return conv3d.BasicStem(self.features, self.dtype, name="proj")(x)
        return conv3d.Patches(self.features, 2, self.dtype, name="proj")(x)


class _Layers(nn.Module):
    """One entry of MONAI's `layersN`: a list that holds a single stage."""

    stage: dict[str, Any]
    remat: bool = False

    @nn.compact
    def __call__(self, x):
        kind = nn.remat(swin.Stage) if self.remat else swin.Stage
        return kind(**self.stage, name="0")(x)


class SwinEncoder(nn.Module):
    """The hierarchy of hidden states: at 1/2, 1/4, 1/8, 1/16 and 1/32 of the side."""

    feature_size: int
    depths: Sequence[int]
    num_heads: Sequence[int]
    patch_embed: str
    merge_order: str
    layout: str
    mask_token: bool
    dtype: Any
    remat: bool

    @nn.compact
    def __call__(self, x, disrupt=None, masked=None):
        """`(B, D, H, W, C)` -> five tensors.

        disrupt: function that is applied to the patch embedding, before the stages.
        masked: `(B, D/2, H/2, W/2, 1)`, 1 where the learned mask token replaces the embedding.
        """
        x = PatchEmbed(self.feature_size, self.patch_embed, self.dtype, name="patch_embed")(x)
        if self.layout == "as_coded":
            x = jnp.moveaxis(x, 1, -1)  # depth taken for channels
        if self.mask_token:
            init = nn.initializers.normal(0.02)
            token = self.param("mask_token", init, (1, 1, x.shape[-1])).astype(x.dtype)
            if masked is not None:
                x = jnp.where(masked > 0, token, x)
        if disrupt is not None:
            x = disrupt(x)
        hidden = [x]
        for i, (depth, heads) in enumerate(zip(self.depths, self.num_heads, strict=True)):
            stage = {
                "depth": depth,
                "num_heads": heads,
                "merge_order": self.merge_order,
                "dtype": self.dtype,
            }
            x = _Layers(stage, self.remat, name=f"layers{i + 1}")(x)
            hidden.append(x)
        return hidden


class SwinUNETR(nn.Module):
    """Encoder and decoder. Build it with `Model`."""

    in_chans: int = 1
    out_chans: int = 1
    feature_size: int = 48
    depths: Sequence[int] = (2, 2, 2, 2)
    num_heads: Sequence[int] = (3, 6, 12, 24)
    patch_embed: str = "conv"
    merge_order: str = "monai15"
    normalize: bool = True
    skip_input: str = "disrupted"
    layout: str = "intended"
    mask_token: bool = False
    image_size: sides.Size = 96
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self):
        F, dtype = self.feature_size, self.dtype
        self.swinViT = SwinEncoder(
            F, self.depths, self.num_heads, self.patch_embed, self.merge_order, self.layout,
            self.mask_token, dtype, self.remat,
        )  # fmt: skip
        encoder = nn.remat(conv3d.EncoderBlock) if self.remat else conv3d.EncoderBlock
        up = nn.remat(conv3d.UpBlock) if self.remat else conv3d.UpBlock
        if self.skip_input != "none":
            self.encoder1 = encoder(F, dtype)
        self.encoder2, self.encoder3 = encoder(F, dtype), encoder(2 * F, dtype)
        self.encoder4, self.encoder10 = encoder(4 * F, dtype), encoder(16 * F, dtype)
        self.decoder5, self.decoder4 = up(8 * F, dtype), up(4 * F, dtype)
        self.decoder3, self.decoder2, self.decoder1 = up(2 * F, dtype), up(F, dtype), up(F, dtype)
        self.out = conv3d.OutBlock(self.out_chans)

    def encode(self, x, disrupt=None, masked=None):
        """`(B, D, H, W, C)`, sides multiples of 32 -> hidden states 0 to 4, as the stages give them."""
        return self.swinViT(x.astype(self.dtype), disrupt, masked)

    def decode(self, x, hidden):
        """The input and its hidden states -> `(B, D, H, W, out_chans)` float32."""
        h = [conv3d.channel_norm(t) for t in hidden] if self.normalize else hidden
        y = self.encoder10(h[4])
        y = self.decoder5(y, h[3])
        y = self.decoder4(y, self.encoder4(h[2]))
        y = self.decoder3(y, self.encoder3(h[1]))
        y = self.decoder2(y, self.encoder2(h[0]))
        skip = None if self.skip_input == "none" else self.encoder1(x.astype(self.dtype))
        return self.out(self.decoder1(y, skip))

    def __call__(self, x, disrupt=None, masked=None, level=None, train=False, drop_path_keys=None):
        """`(B, D, H, W, C)` -> output `(B, D, H, W, out_chans)` float32; out: `hidden`, the states of the stages.

        disrupt: a function of the patch embedding `(B, D/2, H/2, W/2, C)`, for local masking.
        masked: `(B, D/2, H/2, W/2, 1)`, 1 where the mask token replaces the embedding.
        level, train, drop_path_keys: not used.
        """
        hidden = self.encode(x, disrupt, masked)
        return self.decode(x, hidden), {"hidden": hidden}


def Model(
    variant: str = "48",
    *,
    patch_embed: str = "conv",
    merge_order: str = "monai15",
    skip_input: str = "disrupted",
    layout: str = "intended",
    image_size: sides.Size = 96,
    num_levels: int = 0,
    num_classes: int = 0,
    dtype: str = "float32",
    **fields: Any,
) -> SwinUNETR:
    """A Swin-UNETR by feature size: variant "12", "24" or "48"; other fields of `SwinUNETR` by name.

    num_classes: number of classes of a segmentation, and so of output channels.
    """
    if num_classes:
        fields["out_chans"] = num_classes
    if not sides.fits(image_size, 32):
        raise UserError(f"config.image_size={image_size}: every side must be a multiple of 32 voxels (five halvings)")
    if num_levels:
        raise UserError("config.task.degrade: a degradation with levels does not fit a Swin-UNETR")
    if variant not in ("12", "24", "48"):
        raise unknown("config.model.variant", variant, ("12", "24", "48"))
    for name, value, choices in (
        ("patch_embed", patch_embed, PATCH_EMBEDS),
        ("merge_order", merge_order, tuple(swin.MERGE_ORDERS)),
        ("skip_input", skip_input, SKIPS),
        ("layout", layout, LAYOUTS),
    ):
        if value not in choices:
            raise unknown(f"config.model.{name}", value, choices)
    if layout == "as_coded" and fields.get("mask_token"):
        raise UserError(
            "config.model.mask_token is not for config.model.layout=as_coded, whose axes are not those of the blocks"
        )
    size = fields.pop("feature_size", None) or int(variant)
    for name in ("depths", "num_heads"):
        fields[name] = tuple(fields.get(name) or getattr(SwinUNETR, name))
    heads = fields["num_heads"]
    if any((size << stage) % number for stage, number in enumerate(heads)):
        raise UserError(
            f"config.model.feature_size={size}: every stage, twice as wide as the one before, must be divisible "
            f"by its heads, config.model.num_heads={tuple(heads)}"
        )
    if layout == "as_coded":
        _require_as_coded(image_size, size)
    return SwinUNETR(
        feature_size=size,
        patch_embed=patch_embed,
        merge_order=merge_order,
        skip_input=skip_input,
        layout=layout,
        image_size=image_size,
        dtype=jnp.dtype(dtype),
        **fields,
    )


def _require_as_coded(image_size: sides.Size, feature_size: int) -> None:
    """Raise `UserError` if a network that takes depth for channels cannot have these sizes."""
    if len(set(sides.of(image_size, 3))) > 1:
        raise UserError(
            f"config.model.layout=as_coded takes depth for channels, so it needs a cube; config.image_size={image_size}"
        )
    depth = sides.of(image_size, 3)[0] // 2
    if feature_size != depth:
        raise UserError(
            "config.model.layout=as_coded takes the depth of the patches, image_size / 2, for their channels, so "
            f"config.image_size={image_size} needs config.model.feature_size={depth}, not {feature_size}"
        )


def encoder_flops(model: SwinUNETR) -> float:
    """Multiply-adds of the encoder for one cube, one forward pass."""
    F, half = model.feature_size, sides.count(model.image_size, 2, 3)
    stem = half * F * 8 * model.in_chans
    if model.patch_embed == "unet_basic":
        stem = half * F * 27 * (model.in_chans + F)
    total = float(stem)
    for stage, depth in enumerate(model.depths):
        C, places = F * 2**stage, sides.divided(model.image_size, 2 ** (stage + 1), 3)
        window, _ = swin.fitted(places, 0)
        padded = math.prod(-(-n // w) * w for n, w in zip(places, window, strict=True))
        attention = 4 * C * C * padded + 2 * padded * math.prod(window) * C
        merged = sides.count(model.image_size, 2 ** (stage + 2), 3)
        total += depth * (attention + 8 * C * C * math.prod(places)) + merged * 8 * C * 2 * C
    return total


def flops_per_image(model: SwinUNETR, mask_ratio: float = 0.0, training: bool = True) -> float:
    """Operations of the convolutions and matrix products for one cube (2 per multiply-add)."""
    F, total = model.feature_size, encoder_flops(model)
    voxels_at = lambda level: sides.count(model.image_size, 2**level, 3)

    def residual(channels_in, channels, voxels):
        extra = channels_in * channels if channels_in != channels else 0
        return voxels * (27 * channels * (channels_in + channels) + extra)

    skip = model.skip_input != "none"
    if skip:
        total += residual(model.in_chans, F, voxels_at(0))
    for level, width in ((1, F), (2, 2 * F), (3, 4 * F), (5, 16 * F)):
        total += residual(width, width, voxels_at(level))
    for level, before, after in ((4, 16, 8), (3, 8, 4), (2, 4, 2), (1, 2, 1), (0, 1, 1)):
        voxels = voxels_at(level)
        joined = 2 * after * F if level or skip else after * F
        total += voxels * before * after * F * F + residual(joined, after * F, voxels)
    total += voxels_at(0) * F * model.out_chans
    return 2.0 * total * (3 if training else 1)


SSL_HEADS = ("rotation_head/", "contrastive_head/", "conv/")
TOKEN = "swinViT/mask_token"
SKIP = "encoder1/layer/conv1/conv/kernel"


def encodes(name: str) -> bool:
    """Whether a parameter belongs to the encoder."""
    return name.startswith("swinViT/")


def adapt(weights: Flat, needed: Flat, before: Any, model: Any) -> Adapted:
    """The parameters that a Swin-UNETR or a self-supervised encoder can load from another network of these kinds."""
    unused: tuple[str, ...] = () if TOKEN in needed else (TOKEN,)
    # These may be initialised anew: output, token, skip connection at full resolution, and heads of pretext tasks.
    optional: tuple[str, ...] = ("out/", TOKEN, "encoder1/", *SSL_HEADS)
    if (SKIP in weights) != (SKIP in needed):
        # Without that skip connection the last block has half as many channels to read.
        optional, unused = (*optional, "decoder1/"), (*unused, "decoder1/")
    weights = {k: v for k, v in weights.items() if not k.startswith(unused)}
    if not any(k.startswith("decoder") for k in needed):  # a network for pretext tasks
        weights = {k: v for k, v in weights.items() if encodes(k) or k in needed}
    weights = {k: v for k, v in weights.items() if k in needed or not k.startswith(optional)}
    if not any(k.startswith("decoder") for k in weights):  # an encoder alone
        return Adapted(weights, lambda k: not encodes(k) or k.startswith(optional))
    return Adapted(weights, lambda k: k.startswith(optional))


RULES = Rules(undecayed=("mask_token",), heads=("out/", *SSL_HEADS), encodes=encodes, adapt=adapt)
