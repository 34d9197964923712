"""A ViT for masked image modelling, as in SimMIM (Xie et al. 2022).

The encoder is the ViT of `models/vit.py` with MAE's fixed table of positions, or a BEiT with one table of relative
positions for all blocks, as in SimMIM's code.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.models import beit, embed, layers, mim, vit, wrapping
from deblur_mae_jax.models.contract import Flat, Rules
from deblur_mae_jax.models.mim import AXES, KINDS

__all__ = ["AXES", "KINDS", "RULES", "Model", "flops_per_image"]
POSITIONS = ("sincos", "relative_shared")


class HidingViT(vit.ViT):
    """The encoder with a fixed table of positions."""

    pool: str = "cls"

    def setup(self):
        self._encoder(learned_positions=False)
        self.pos_embed = jnp.asarray(self.position_table())[None]
        self.norm = layers.layer_norm(None, self.dtype)
        self.mask_token = mim.mask_token(self, self.embed_dim)


class HidingBeit(beit.Beit):
    """The encoder with relative positions."""

    pool: str = "cls"
    positions: str = "relative_shared"

    def setup(self):
        self._encoder()
        self.norm = layers.layer_norm(None, self.dtype)
        self.mask_token = mim.mask_token(self, self.embed_dim)


class ViTMIM(mim.MaskedImageModel, vit.Encoder):
    """Encoder and decoder. Build it with `Model`."""

    mask_size: int = 32
    positions: str = "sincos"
    layer_scale: float = beit.LAYER_SCALE
    drop_path: float = 0.0

    @property
    def token_size(self) -> int:
        """Side of the encoder's patches, pixels."""
        return self.patch_size

    @property
    def stride(self) -> int:
        """Side of the patches that its tokens stand for, pixels."""
        return self.patch_size

    def _make_encoder(self):
        return encoder(self)

    def _width(self):
        return self.embed_dim

    def _encode(self, images, level, hide=None, drop_path_keys=None):
        return self.encoder.norm(self.encoder.hidden(images, level, None, drop_path_keys, hide)[-1])


def encoder(model: ViTMIM) -> vit.ViT:
    """The encoder of a network, unbound."""
    names = [field.name for field in dataclasses.fields(vit.Encoder) if field.name not in ("parent", "name")]
    own = {name: getattr(model, name) for name in (*names, "drop_path")}
    if model.positions == "sincos":
        return HidingViT(**own)
    return HidingBeit(**own, layer_scale=model.layer_scale)


def Model(variant: str = "B", *, positions: str = "sincos", **fields: Any) -> ViTMIM:
    """A ViT by size: variant "Ti", "S", "B", "L" or "H"; other fields of `ViTMIM` by name."""
    if positions not in POSITIONS:
        raise unknown("config.model.positions", positions, POSITIONS)
    if not 0 <= fields.get("drop_path", 0.0) < 1:
        raise UserError(f"config.model.drop_path={fields['drop_path']} must be in [0, 1)")
    if positions != "sincos":
        beit.check(fields)
    elif fields.get("layer_scale", beit.LAYER_SCALE) != beit.LAYER_SCALE:
        raise UserError("config.model.layer_scale needs config.model.positions=relative_shared: only a BEiT has it")
    return mim.check(embed.build(ViTMIM, variant, fields | {"positions": positions}))


def flops_per_image(model: ViTMIM, mask_ratio: float = 0.0, training: bool = True) -> float:
    """Operations of the matrix products for one image (2 per multiply-add). Masking saves none."""
    forward = vit.flops_per_image(encoder(model), training=False) + mim.decoder_flops(model, model.embed_dim)
    return forward * (3 if training else 1)


def tables(model: ViTMIM) -> dict[str, np.ndarray]:
    """The fixed position table, which PyTorch keeps in the state dict."""
    return {"encoder.pos_embed": encoder(model).position_table()[None]} if model.positions == "sincos" else {}


def _wrapped(model: ViTMIM) -> tuple[Any, Rules]:
    return encoder(model), vit.RULES if model.positions == "sincos" else beit.RULES


def adapt(weights: Flat, needed: Flat, before: Any, model: ViTMIM) -> Any:
    """All from a network of SimMIM, or the encoder of a ViT; its table of positions is not needed."""
    found = wrapping.adapt(mim.ENCODER, _wrapped, (mim.MASK_TOKEN,))(weights, needed, before, model)
    return found._replace(weights={k: v for k, v in found.weights.items() if k != f"{mim.ENCODER}pos_embed"})


RULES = Rules(
    undecayed=beit.RULES.undecayed, stem=f"{mim.ENCODER}patch_embed/proj/kernel",
    shift=(f"{mim.ENCODER}patch_embed/proj/bias", 1.0), tables=tables, adapt=adapt,
    encodes=lambda name: name.startswith(mim.ENCODER) and not name.startswith(mim.ENCODER + mim.MASK_TOKEN),
    inner=wrapping.inner(mim.ENCODER, _wrapped, (mim.MASK_TOKEN,)),
)  # fmt: skip
