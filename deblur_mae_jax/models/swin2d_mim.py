"""A 2-D Swin Transformer for masked image modelling, as in SimMIM (Xie et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import mim, swin2d, wrapping
from deblur_mae_jax.models.contract import Rules
from deblur_mae_jax.models.mim import AXES, KINDS

__all__ = ["AXES", "KINDS", "RULES", "Model", "flops_per_image"]
# Fields that the network and its encoder share.
OF_ENCODER = ("image_size", "in_chans", "width", "depths", "window", "drop_path", "dtype", "remat")


class HidingSwin(swin2d.Swin):
    """The encoder."""

    def setup(self):
        super().setup()
        self.mask_token = mim.mask_token(self, self.width)


class SwinMIM(mim.MaskedImageModel):
    """Encoder and decoder. Build it with `Model`."""

    image_size: sides.Size = 224
    in_chans: int = 1
    width: int = 96
    depths: Sequence[int] = (2, 2, 6, 2)
    window: int = 7
    mask_size: int = 32
    drop_path: float = 0.0
    dtype: Any = jnp.float32
    remat: bool = False

    num_prefix = 0
    token_size = swin2d.PATCH

    @property
    def stride(self) -> int:
        """Side of the patches that its tokens stand for, pixels."""
        return swin2d.PATCH << (len(self.depths) - 1)

    def _make_encoder(self):
        return encoder(self)

    def _width(self):
        return self.width << (len(self.depths) - 1)

    def _encode(self, images, level, hide=None, drop_path_keys=None):
        scales = self.encoder.drop_path_scales(drop_path_keys)
        x = self.encoder.norm(self.encoder.maps(images, False, scales, hide)[0][-1])
        return x.reshape(len(x), -1, x.shape[-1]).astype(self.dtype)


def encoder(model: SwinMIM) -> HidingSwin:
    """The encoder of a network, unbound."""
    return HidingSwin(**{name: getattr(model, name) for name in OF_ENCODER})


def Model(
    variant: str = "",
    *,
    mask_size: int = 32,
    window: int = 7,
    conditioning: str = "none",
    num_levels: int = 0,
    **fields: Any,
) -> SwinMIM:
    """A Swin by size: variant "T" (the default), "S", "B" or "L"; other fields of `SwinMIM` by name."""
    inside = swin2d.Model(variant, window=window, conditioning=conditioning, num_levels=num_levels, **fields)
    model = SwinMIM(mask_size=mask_size, **{name: getattr(inside, name) for name in OF_ENCODER})
    if not sides.fits(model.image_size, model.stride):
        raise UserError(f"config.image_size={model.image_size}: every side must be a multiple of {model.stride}")
    return mim.check(model)


def flops_per_image(model: SwinMIM, mask_ratio: float = 0.0, training: bool = True) -> float:
    """Operations of the matrix products for one image (2 per multiply-add). Masking saves none."""
    width = model.width << (len(model.depths) - 1)
    forward = swin2d.flops_per_image(encoder(model), training=False) + mim.decoder_flops(model, width)
    return forward * (3 if training else 1)


def _wrapped(model: SwinMIM) -> tuple[Any, Rules]:
    return encoder(model), swin2d.RULES


RULES = Rules(
    undecayed=(*swin2d.RULES.undecayed, mim.MASK_TOKEN), stem=f"{mim.ENCODER}{swin2d.RULES.stem}",
    shift=(f"{mim.ENCODER}{swin2d.RULES.shift[0]}", 1.0),
    encodes=lambda name: name.startswith(mim.ENCODER) and not name.startswith(mim.ENCODER + mim.MASK_TOKEN),
    adapt=wrapping.adapt(mim.ENCODER, _wrapped, (mim.MASK_TOKEN,)),
    inner=wrapping.inner(mim.ENCODER, _wrapped, (mim.MASK_TOKEN,)),
)  # fmt: skip
