"""Segmentation of 2-D images by the encoder of any classifier and the decoder of a U-Net++ or a UPerNet.

The encoder has the parameter names of its own network, under `encoder`. Maps of a ViT have one size; as in BEiT's
code they are enlarged four times and twice, kept, and halved. A ConvViT has three maps; a convolution adds the
fourth, as in DeblurringMIM's code.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from deblur_mae_jax import lookup, sides
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.models import (
    backbone,
    beit,
    conv2d,
    convnext,
    convvit,
    layers,
    resnet,
    swin2d,
    unetpp,
    upernet,
    vit,
    wrapping,
)
from deblur_mae_jax.models.contract import Rules

KINDS = ("segment",)
AXES = 2
ENCODERS: dict[str, Any] = {
    "resnet": resnet, "convnext": convnext, "swin2d": swin2d, "vit": vit, "beit": beit, "convvit": convvit,
}  # fmt: skip
DECODERS = ("unetpp", "upernet")
PREFIX = "encoder/"
# What a classifier has after its last map.
UNUSED = ("norm/", "fc_norm/", "head/", "head_0/", "head_1/", "fc/")
# Networks whose maps are not normalised at the end of a stage.
UNNORMALISED = ("convnext", "swin2d", "vit", "beit", "convvit")


class Segmenter(nn.Module):
    """Encoder and decoder. Build it with `Model`.

    encoder: a classifier, unbound; its head is not used.
    kind: the name of the encoder.
    decoder: "unetpp" or "upernet".
    """

    encoder: Any
    kind: str
    decoder: str
    image_size: sides.Size
    in_chans: int
    num_classes: int
    decoder_width: int
    drop_path: float
    dtype: Any = jnp.float32

    def setup(self):
        if self.kind in UNNORMALISED:
            self.norms = [layers.layer_norm(None, self.dtype) for _ in range(len(channels_of(self)))]
        if self.kind in ("vit", "beit"):
            D = self.encoder.embed_dim
            self.enlarge = [layers.dense(4 * D, self.dtype) for _ in range(3)]
            self.enlarge_norm = layers.BatchNorm(conv2d.EPSILON, affine=True)
        if self.kind == "convvit":
            self.halve = backbone.convolution(self.encoder.embed_dim, 3, 2, padding=1, dtype=self.dtype)
            self.halve_norm = layers.BatchNorm(conv2d.EPSILON, affine=True)
        if self.decoder == "unetpp":
            decoder: Any = unetpp.UNetPP(self.num_classes, dtype=self.dtype)
        else:
            decoder = upernet.UPerNet(self.num_classes, self.decoder_width, self.dtype)
        self.decode_head = decoder

    def features(self, images, level=None):
        """The mean of the encoder's last map `(B, D)` float32.

        level: blur level of each image `(B,)`, required if the model is conditioned.
        """
        return self.encoder.pyramid(images, level)[0][-1].astype(jnp.float32).mean(axis=(1, 2))

    def __call__(self, images, level=None, train=False, drop_path_keys=None):
        """`(B, H, W, C)` -> logits `(B, H, W, K)` float32.

        level: blur level of each image `(B,)`, required if the model is conditioned.
        train: normalise by the statistics of this batch.
        drop_path_keys: random keys `(B,)` for stochastic depth, in training.
        out: `assign`, new running statistics in training; `auxiliary`, the logits of a second head (UPerNet).
        """
        maps, new = self.encoder.pyramid(images, level, train, drop_path_keys)
        assign = {"encoder": new} if new else {}
        if self.kind in UNNORMALISED:
            maps = [norm(x) for norm, x in zip(self.norms, maps, strict=True)]
        maps, more = self._four(maps, train)
        logits, out, newer = self.decode_head(maps, train)
        assign |= more | ({"decode_head": newer} if train else {})
        shape = images.shape[1:3]
        return conv2d.resize(logits, shape), {
            **{name: conv2d.resize(x, shape) for name, x in out.items()}, "assign": assign
        }  # fmt: skip

    def _four(self, maps, train):
        """Four maps, each of half the sides of the one before, and new running statistics."""
        if self.kind == "convvit":
            x, new = self.halve_norm(self.halve(maps[-1]), train)
            return [*maps, layers.gelu(x.astype(self.dtype))], {"halve_norm": new} if train else {}
        if self.kind not in ("vit", "beit"):
            return maps, {}
        first, new = self.enlarge_norm(_enlarged(self.enlarge[0], maps[0]), train)
        first = _enlarged(self.enlarge[1], layers.gelu(first.astype(self.dtype)))
        last = nn.max_pool(maps[3], (2, 2), (2, 2))
        return [first, _enlarged(self.enlarge[2], maps[1]), maps[2], last], {"enlarge_norm": new} if train else {}


def _enlarged(dense: Any, x: Any) -> Any:
    """`(B, H, W, D)` -> `(B, 2H, 2W, D)`: a transposed convolution with a kernel as large as its stride."""
    B, H, W, D = x.shape
    return dense(x).reshape(B, H, W, 2, 2, D).transpose(0, 1, 3, 2, 4, 5).reshape(B, 2 * H, 2 * W, D)


def Model(
    variant: str = "",
    *,
    encoder: str = "resnet",
    decoder: str = "unetpp",
    decoder_width: int = upernet.WIDTH,
    num_classes: int = 0,
    **passed_on: Any,
) -> Segmenter:
    """A segmentation network by the size of its encoder; other fields are those of the encoder."""
    if encoder not in ENCODERS:
        raise unknown("config.model.encoder", encoder, ENCODERS)
    if decoder not in DECODERS:
        raise unknown("config.model.decoder", decoder, DECODERS)
    if variant:
        passed_on["variant"] = variant
    try:
        inside = lookup.call(ENCODERS[encoder].Model, "model", passed_on)
    except UserError as error:
        raise UserError(
            f"config.model.encoder={encoder}: {error}. The word after the config, as in configs/unetpp.py:{encoder}, "
            "brings the fields of an encoder"
        ) from error
    size = inside.image_size
    if not sides.fits(size, 32) and encoder not in ("vit", "beit"):
        raise UserError(
            f"config.image_size={size}: every side must be a multiple of 32 for config.model.encoder={encoder}"
        )
    if encoder in ("vit", "beit") and any(number % 2 for number in inside.grid):
        raise UserError(
            f"config.image_size={size}: the numbers of patches, {sides.written(inside.grid)}, must be even for "
            f"config.model.encoder={encoder}"
        )
    if decoder == "unetpp" and decoder_width != upernet.WIDTH:
        raise UserError(f"config.model.decoder_width={decoder_width} is the width of a UPerNet, not of a U-Net++")
    if decoder_width < 1:
        raise UserError(f"config.model.decoder_width={decoder_width} must be at least 1")
    return Segmenter(
        inside, encoder, decoder, size, inside.in_chans, num_classes, decoder_width, inside.drop_path, inside.dtype
    )


def channels_of(model: Segmenter) -> list[int]:
    """Channels of the maps of the encoder."""
    inside = model.encoder
    if model.kind in ("vit", "beit"):
        return [inside.embed_dim] * 4
    if model.kind == "convvit":
        return [*inside.stem_dims, inside.embed_dim]
    return [(inside.width << stage) * (resnet.EXPANSION if model.kind == "resnet" else 1) for stage in range(4)]


def flops_per_image(model: Segmenter, mask_ratio: float = 0.0, training: bool = True) -> float:
    """Operations of convolutions and matrix products for one image (2 per multiply-add)."""
    inside, size, channels = model.encoder, model.image_size, channels_of(model)
    total = ENCODERS[model.kind].flops_per_image(inside, training=False)
    first = sides.divided(size, 4)
    if model.kind in ("vit", "beit"):
        first, D = tuple(4 * number for number in inside.grid), inside.embed_dim
        total += 2.0 * D * 4 * D * (2 * inside.num_patches + 4 * inside.num_patches)
    if model.kind == "convvit":
        channels = [*channels, inside.embed_dim]
        total += conv2d.flops(sides.count(size, 32), channels[-1], channels[-1], 3)
    places = [math.prod(side >> number for side in first) for number in range(4)]
    if model.decoder == "unetpp":
        total += unetpp.flops(places, channels, model.num_classes)
    else:
        total += upernet.flops(places, channels, model.num_classes, model.decoder_width)
    return total * (3 if training else 1)


def _layers(rules: Rules) -> Callable[[Segmenter], tuple[int, Callable[[str], int]]]:
    """Layers for layer-wise learning rates: those of the encoder, and the decoder above them."""

    def layers_of(model: Segmenter) -> tuple[int, Callable[[str], int]]:
        assert rules.layers is not None
        count, layer = rules.layers(model.encoder)
        return count, lambda name: layer(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else count

    return layers_of


def RULES(model: Segmenter) -> Rules:
    """The rules of the encoder, under its prefix."""
    own = ENCODERS[model.kind].RULES
    wrapped: wrapping.Wrapped = lambda model: (model.encoder, ENCODERS[model.kind].RULES)
    return Rules(
        undecayed=own.undecayed, layers=None if own.layers is None else _layers(own),
        heads=("decode_head/out/", "decode_head/auxiliary_out/"),
        encodes=lambda name: name.startswith(PREFIX) and own.encodes(name.removeprefix(PREFIX)),
        adapt=wrapping.adapt(PREFIX, wrapped, own.heads, UNUSED), stem=PREFIX + own.stem,
        shift=(PREFIX + own.shift[0], own.shift[1]), inner=wrapping.inner(PREFIX, wrapped, own.heads),
    )  # fmt: skip
