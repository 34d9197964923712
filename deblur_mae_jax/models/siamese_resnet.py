"""A ResNet for contrastive learning, as in SimCLR (Chen et al. 2020) and MoCo v3 (Chen, Xie and He 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from deblur_mae_jax import sides
from deblur_mae_jax.models import backbone, resnet, siamese, wrapping
from deblur_mae_jax.models.contract import Rules
from deblur_mae_jax.models.siamese import AXES, KINDS

__all__ = ["AXES", "KINDS", "RULES", "Model", "flops_per_image"]
HEAD = "fc_"


class ProjectingResNet(resnet.ResNet):
    """The encoder, with the projector in place of its head."""

    projector: Sequence[int] = (2048, 2048, 128)
    projector_last: str = "scale"

    def setup(self):
        super().setup()
        siamese.add_mlp(self, "fc", self.projector, self.projector_last)

    def project(self, images, level=None, train=False):
        """`(B, H, W, C)` -> embeddings `(B, E)` float32, and the new running statistics."""
        x, new = self._pooled(images, train, None)
        out, more = siamese.run_mlp(self, "fc", x, train)
        return out, new | more


class SiameseResNet(siamese.Siamese):
    """Encoder, projector and, for MoCo v3, momentum encoder and predictor. Build it with `Model`."""

    image_size: sides.Size = 224
    in_chans: int = 1
    width: int = 64
    depths: Sequence[int] = (3, 4, 6, 3)
    dtype: Any = jnp.float32
    remat: bool = False

    def _encoders(self):
        self.base_encoder = encoder(self)
        if self.momentum:
            self.momentum_encoder = encoder(self)


def encoder(model: SiameseResNet) -> ProjectingResNet:
    """The encoder of a network, unbound."""
    names = ("image_size", "in_chans", "width", "depths", "dtype", "remat", "projector", "projector_last")
    return ProjectingResNet(**{name: getattr(model, name) for name in names})


def Model(variant: str = "", *, conditioning: str = "none", num_levels: int = 0, **fields: Any) -> SiameseResNet:
    """A ResNet by size: variant "50" (the default) or "101"; other fields of `SiameseResNet` by name."""
    sizes = dict(zip(("width", "depths"), backbone.variant_of(resnet.VARIANTS, variant), strict=True))
    fields = siamese.check(backbone.check(fields, conditioning, "ResNet"))
    return SiameseResNet(**backbone.sized(sizes, fields) | fields)


def flops_per_image(model: SiameseResNet, mask_ratio: float = 0.0, training: bool = True) -> float:
    """Operations of convolutions and matrix products for one image (2 per multiply-add).

    A training step takes two views, forward and backward, and with momentum two forward passes more.
    """
    encoding = resnet.flops_per_image(encoder(model), training=False)
    features = resnet.EXPANSION * (model.width << len(model.depths) - 1)
    encoding += siamese.mlp_flops(features, model.projector)
    predicting = siamese.mlp_flops(model.projector[-1], model.predictor)
    if not training:
        return encoding
    return 6 * (encoding + predicting) + (2 * encoding if model.momentum else 0)


def _wrapped(model: Any) -> tuple[Any, Rules]:
    return encoder(model), resnet.RULES


RULES = Rules(
    stem=f"{siamese.BASE}conv1/kernel", shift=(f"{siamese.BASE}bn1/running_mean", -1.0),
    encodes=lambda name: name.startswith(siamese.BASE) and not name.startswith(siamese.BASE + HEAD),
    adapt=wrapping.adapt(siamese.BASE, _wrapped, (HEAD,)), inner=wrapping.inner(siamese.BASE, _wrapped, (HEAD,)),
)  # fmt: skip
