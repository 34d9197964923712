"""A ViT for self-distillation as in DINOv2 (Oquab et al. 2023): a student, a teacher, and two heads of prototypes each.

Parameter names follow DINOv2's code: `student` and `teacher`, each with `backbone`, `dino_head` (for the cls token) and
`ibot_head` (for patches). The backbone is the ViT of `models/vit.py`; it has no layer scale, unlike DINOv2's.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import backbone, embed, layers, mim, position, vit, wrapping
from deblur_mae_jax.models.contract import Adapted, Flat, Rules

KINDS = ("distill",)
AXES = 2
STUDENT, TEACHER = "student/", "teacher/"
ENCODER = f"{TEACHER}backbone/"


class Backbone(vit.ViT):
    """The encoder, which also takes images of other sizes than its own, and masks."""

    pool: str = "cls"

    def setup(self):
        self._encoder(learned_positions=True)
        self.norm = layers.layer_norm(None, self.dtype)
        self.mask_token = mim.mask_token(self, self.embed_dim)

    def tokens(self, images, level=None, mask=None, drop_path_keys=None):
        """`(B, H, W, C)` -> the cls token `(B, D)` and those of the patches `(B, L, D)`, after the norm, float32.

        mask: `(B, L)`, 1 for patches that the mask token replaces; None: none.
        """
        hide = None
        if mask is not None:
            hide = lambda x: jnp.where(mask[:, :, None] > 0, self.mask_token[0].astype(x.dtype), x)
        x = self._tokens(images, level, None, hide)
        now = tuple(side // self.patch_size for side in images.shape[1:3])
        table = position.resized(self.pos_embed, self.grid, now, self.num_prefix)
        x = x + table.astype(self.dtype)
        for block, scale in zip(self.blocks, self._scales(drop_path_keys), strict=True):
            x = block(x, scale)
        x = self.norm(x).astype(jnp.float32)
        return x[:, 0], x[:, self.num_prefix :]


class PrototypeHead(nn.Module):
    """DINO's head: an MLP to a bottleneck of length one, and its similarity to prototypes of length one.

    hidden: width of the two hidden layers.
    bottleneck: width of the bottleneck.
    prototypes: their number.
    """

    hidden: int
    bottleneck: int
    prototypes: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        x = x.astype(self.dtype)
        for number in (0, 2):
            x = layers.gelu(layers.dense(self.hidden, self.dtype, f"mlp_{number}", backbone.normal)(x))
        x = layers.dense(self.bottleneck, self.dtype, "mlp_4", backbone.normal)(x)
        x = _unit(x.astype(jnp.float32))
        shape = (self.bottleneck, self.prototypes)
        kernel = self.param("last_layer", nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"), shape)
        return x @ _unit(kernel.T).T


def _unit(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(axis=-1, keepdims=True), 1e-24))


class Part(nn.Module):
    """The student, or the teacher."""

    inside: Any
    head: Any

    def setup(self):
        self.backbone = self.inside.clone()
        self.dino_head, self.ibot_head = PrototypeHead(*self.head), PrototypeHead(*self.head)

    def __call__(self, images, level=None, mask=None, drop_path_keys=None):
        """The cls token `(B, D)`, its prototypes `(B, K)` and those of the patches `(B, L, K)`."""
        cls, patches = self.backbone.tokens(images, level, mask, drop_path_keys)
        return cls, self.dino_head(cls), self.ibot_head(patches)

    def cls(self, images, level=None, drop_path_keys=None):
        """The prototypes of the cls token `(B, K)`."""
        return self.dino_head(self.backbone.tokens(images, level, None, drop_path_keys)[0])

    def features(self, images, level=None):
        """The cls token `(B, D)`."""
        return self.backbone.tokens(images, level)[0]


class ViTDINO(vit.Encoder):
    """Student and teacher. Build it with `Model`."""

    head_hidden: int = 2048
    head_bottleneck: int = 256
    prototypes: int = 4096
    drop_path: float = 0.1

    def setup(self):
        head = (self.head_hidden, self.head_bottleneck, self.prototypes, self.dtype)
        self.student, self.teacher = Part(encoder(self), head), Part(encoder(self), head)

    def __call__(self, images, level=None, mask=None, drop_path_keys=None):
        """The student's cls token `(B, D)`; out: `prototypes` `(B, K)`, and `of_patches` `(B, L, K)`.

        level: blur level of each image `(B,)`, required if the model is conditioned.
        mask: `(B, L)`, 1 for masked patches; None: none.
        drop_path_keys: random keys `(B,)` for stochastic depth, in training.
        """
        cls, prototypes, of_patches = self.student(images, level, mask, drop_path_keys)
        if self.is_initializing():
            self.teacher(images, level)
        return cls, {"prototypes": prototypes, "of_patches": of_patches}

    def local(self, images, level=None, drop_path_keys=None):
        """The student's prototypes `(B, K)` of smaller images."""
        return self.student.cls(images, level, drop_path_keys)

    def target(self, images, level=None):
        """The teacher's cls token `(B, D)`, prototypes `(B, K)`, and those of the patches `(B, L, K)`."""
        return self.teacher(images, level)

    def features(self, images, level=None):
        """`(B, H, W, C)` -> the teacher's cls token `(B, D)` float32."""
        return self.teacher.features(images, level)


def encoder(model: ViTDINO) -> Backbone:
    """The encoder of a network, unbound."""
    names = [field.name for field in dataclasses.fields(vit.Encoder) if field.name not in ("parent", "name")]
    return Backbone(**{name: getattr(model, name) for name in (*names, "drop_path")}, parent=None)


def Model(variant: str = "B", **fields: Any) -> ViTDINO:
    """A ViT by size: variant "Ti", "S", "B", "L" or "H"; other fields of `ViTDINO` by name."""
    for name in ("head_hidden", "head_bottleneck", "prototypes"):
        if fields.get(name, 1) < 1:
            raise UserError(f"config.model.{name}={fields[name]} must be at least 1")
    if not 0 <= fields.get("drop_path", 0.0) < 1:
        raise UserError(f"config.model.drop_path={fields['drop_path']} must be in [0, 1)")
    return embed.build(ViTDINO, variant, fields)


def flops_per_image(model: ViTDINO, mask_ratio: float = 0.0, training: bool = True) -> float:
    """Operations of the matrix products for one image (2 per multiply-add).

    A training step takes two views, forward and backward by the student and forward by the teacher. The small crops
    are not counted.
    """
    L, D = model.num_patches, model.embed_dim
    widths = (D, model.head_hidden, model.head_hidden, model.head_bottleneck, model.prototypes)
    head = sum(2.0 * a * b for a, b in itertools.pairwise(widths))
    encoding = vit.flops_per_image(encoder(model), training=False)
    return 8 * (encoding + (1 + L) * head) if training else encoding


def _wrapped(model: ViTDINO) -> tuple[Any, Rules]:
    return encoder(model), vit.RULES


def adapt(weights: Flat, needed: Flat, before: Any, model: ViTDINO) -> Adapted:
    """The encoder of any ViT for the student. From a network of this kind the teacher's parameters, as the better ones.

    The teacher starts as a copy of the student (`tasks/dino_v2.py`).
    """
    teacher = {name.removeprefix(TEACHER): value for name, value in weights.items() if name.startswith(TEACHER)}
    weights = {STUDENT + name: value for name, value in teacher.items()} if teacher else weights
    return wrapping.adapt(f"{STUDENT}backbone/", _wrapped, (mim.MASK_TOKEN,))(weights, needed, before, model)


RULES = Rules(
    undecayed=(*vit.TOKENS, "last_layer"), stem=f"{ENCODER}patch_embed/proj/kernel",
    shift=(f"{ENCODER}patch_embed/proj/bias", 1.0),
    encodes=lambda name: name.startswith(ENCODER) and not name.startswith(ENCODER + mim.MASK_TOKEN),
    adapt=adapt,
    inner=wrapping.inner(ENCODER, _wrapped, (mim.MASK_TOKEN,)),
)  # fmt: skip
