"""A ViT for contrastive learning, as in MoCo v3 (Chen, Xie and He 2021).

The encoder is the ViT of `models/vit.py` with MoCo v3's initialisation and its fixed table of positions, whose channels
have another order than MAE's. The features are the cls token after `norm`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from deblur_mae_jax.models import embed, layers, position, siamese, vit, wrapping
from deblur_mae_jax.models.contract import Rules
from deblur_mae_jax.models.siamese import AXES, KINDS

__all__ = ["AXES", "KINDS", "RULES", "Model", "flops_per_image"]
HEAD = "head_"
# Query, key and value are initialised as three matrices: Xavier-uniform with as many outputs as inputs.
separate = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
tiny_normal = nn.initializers.normal(1e-6)


class ProjectingViT(vit.ViT):
    """The encoder, with the projector in place of its head."""

    pool: str = "cls"
    projector: Sequence[int] = (4096, 4096, 256)
    projector_last: str = "plain"

    def position_table(self):
        return position.sincos_2d_quarters(self.embed_dim, self.grid, self.num_prefix)

    @property
    def patch_bias_init(self):
        """Zeros: the patch embedding is frozen, so that a bias would stay as it is drawn."""
        return nn.initializers.zeros

    def _block(self):
        return functools.partial(super()._block(), qkv_init=separate)

    def setup(self):
        self._encoder(learned_positions=True, init=tiny_normal)
        self.norm = layers.layer_norm(None, self.dtype)
        siamese.add_mlp(self, "head", self.projector, self.projector_last)

    def project(self, images, level=None, train=False):
        """`(B, H, W, C)` -> embeddings `(B, E)` float32, and the new running statistics."""
        return siamese.run_mlp(self, "head", self.features(images, level), train)


class SiameseViT(siamese.Siamese, vit.Encoder):
    """Encoder, projector, momentum encoder and predictor. Build it with `Model`."""

    def _encoders(self):
        self.base_encoder = encoder(self)
        if self.momentum:
            self.momentum_encoder = encoder(self)


def encoder(model: SiameseViT) -> ProjectingViT:
    """The encoder of a network, unbound."""
    names = [field.name for field in dataclasses.fields(vit.Encoder) if field.name not in ("parent", "name")]
    own = {name: getattr(model, name) for name in (*names, "projector", "projector_last")}
    return ProjectingViT(**own)


def Model(variant: str = "B", **fields: Any) -> SiameseViT:
    """A ViT by size: variant "Ti", "S", "B", "L" or "H"; other fields of `SiameseViT` by name."""
    return embed.build(SiameseViT, variant, siamese.check(fields))


def flops_per_image(model: SiameseViT, mask_ratio: float = 0.0, training: bool = True) -> float:
    """Operations of the matrix products for one image (2 per multiply-add).

    A training step takes two views, forward and backward, and with momentum two forward passes more.
    """
    encoding = vit.flops_per_image(encoder(model), training=False)
    encoding += siamese.mlp_flops(model.embed_dim, model.projector)
    predicting = siamese.mlp_flops(model.projector[-1], model.predictor)
    if not training:
        return encoding
    return 6 * (encoding + predicting) + (2 * encoding if model.momentum else 0)


def _wrapped(model: Any) -> tuple[Any, Rules]:
    return encoder(model), vit.RULES


RULES = Rules(
    undecayed=vit.TOKENS, stem=f"{siamese.BASE}patch_embed/proj/kernel",
    shift=(f"{siamese.BASE}patch_embed/proj/bias", 1.0),
    encodes=lambda name: name.startswith(siamese.BASE) and not name.startswith(siamese.BASE + HEAD),
    adapt=wrapping.adapt(siamese.BASE, _wrapped, (HEAD,)), inner=wrapping.inner(siamese.BASE, _wrapped, (HEAD,)),
)  # fmt: skip
