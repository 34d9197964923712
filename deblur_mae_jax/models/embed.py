"""The inputs of a ViT encoder (patches and the code of the blur level), and the sizes of its variants."""

from __future__ import annotations

import importlib.util
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.models import attention, layers, position

# width, depth, heads of the encoder
VARIANTS = {
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
}
CONDITIONINGS = ("none", "addition", "token")
LEVEL_CODES = ("learned", "sinusoid", "table", "mlp")
token_init = nn.initializers.normal(0.02)


class PatchEmbed(nn.Module):
    """Linear embedding of flattened patches, stored as the P x P convolution it is in PyTorch.

    bias_init: initialisation of the bias; `None`: that of a PyTorch convolution.
    """

    patch_size: int
    in_chans: int
    embed_dim: int
    dtype: Any = jnp.float32
    bias_init: Any = None

    @nn.compact
    def __call__(self, patches):
        sizes = self.patch_size, self.in_chans, self.embed_dim
        return _PatchProjection(*sizes, self.dtype, self.bias_init, name="proj")(patches)


class _PatchProjection(nn.Module):
    patch_size: int
    in_chans: int
    embed_dim: int
    dtype: Any
    bias_init: Any

    @nn.compact
    def __call__(self, patches):
        P, C, D = self.patch_size, self.in_chans, self.embed_dim

        def kernel_init(key, shape, dtype=jnp.float32):
            return layers.xavier(key, (P * P * C, D), dtype).reshape(shape)

        kernel = self.param("kernel", kernel_init, (P, P, C, D))
        bias = self.param("bias", self.bias_init or layers.torch_uniform(P * P * C), (D,))
        x, kernel = nn.dtypes.promote_dtype(patches, kernel, dtype=self.dtype)
        x = x.reshape(-1, P * P * C)
        return layers.shift(layers.matmul(x, kernel.reshape(P * P * C, D)), bias).reshape(*patches.shape[:-1], D)


class LevelCode(nn.Module):
    """The code of the blur level, a vector: `(B,)` levels -> `(B, D)`.

    Choices of `code`:
    learned: DDPM's sinusoid plus one learned vector, D2MAE's "0.0009 %" of extra parameters (D numbers).
    sinusoid: the sinusoid alone, without parameters.
    table: one learned row per level (and row 0, which no level reads).
    mlp: a two-layer network on the sinusoid.
    """

    dim: int
    code: str = "learned"
    num_levels: int = 0

    @nn.compact
    def __call__(self, level):
        if self.code == "table":
            table = self.param("table", token_init, (self.num_levels + 1, self.dim))
            return table[level]
        x = position.sincos_level(level, self.dim)
        if self.code == "mlp":
            x = nn.silu(nn.Dense(self.dim, kernel_init=layers.xavier, name="fc1")(x))
            x = nn.Dense(self.dim, kernel_init=layers.xavier, name="fc2")(x)
        return x


def build(network: Any, variant: str, fields: dict[str, Any]) -> Any:
    """Build `network(**fields)` with the sizes of a ViT variant. Raises `UserError`.

    A size that is set in `fields` overrides the variant's.
    """
    if not variant:
        raise UserError(
            "config.model.variant is empty: the network of config.init_from is of another kind than this config's "
            "model; use a config of its kind, such as configs/resnet.py, convnext.py, swin.py, beit.py or convvit.py"
        )
    if variant not in VARIANTS:
        raise unknown("config.model.variant", variant, VARIANTS)
    sizes = dict(zip(("embed_dim", "depth", "num_heads"), VARIANTS[variant], strict=True))
    sizes |= {name: fields[name] for name in sizes if fields.get(name)}
    if sizes["embed_dim"] % sizes["num_heads"] or sizes["embed_dim"] % 4:
        raise UserError(
            f"config.model.embed_dim={sizes['embed_dim']} must be divisible by 4 and by "
            f"config.model.num_heads={sizes['num_heads']}"
        )
    width, heads = fields.get("decoder_embed_dim"), fields.get("decoder_num_heads")
    if width and heads and (width % heads or width % 4):
        raise UserError(
            f"config.model.decoder_embed_dim={width} must be divisible by 4 and by "
            f"config.model.decoder_num_heads={heads}"
        )
    model = network(**fields | sizes | {"dtype": jnp.dtype(fields.get("dtype", "float32"))})
    check(model)
    return model


def check(model: Any) -> None:
    """Raise `UserError` for fields that are invalid, or that this machine does not support."""
    named = {"conditioning": CONDITIONINGS, "level_code": LEVEL_CODES, "attention": attention.ATTENTIONS}
    for name, choices in named.items():
        if getattr(model, name) not in choices:
            raise unknown(f"config.model.{name}", getattr(model, name), choices)
    backend, dtype = jax.default_backend(), jnp.dtype(model.dtype).name
    if model.attention == "cudnn" and (dtype != "bfloat16" or backend != "gpu"):
        raise UserError(
            "config.model.attention=cudnn needs an NVIDIA GPU and config.model.dtype=bfloat16; "
            f"this is a {backend} with {dtype}. 'auto' chooses what runs here"
        )
    tokamax = importlib.util.find_spec("tokamax") is not None
    if model.attention == "triton" and not (backend == "gpu" and tokamax):
        raise UserError(
            "config.model.attention=triton needs an NVIDIA GPU (Ampere or newer) and Tokamax (pip install tokamax); "
            f"this is a {backend} {'with' if tokamax else 'without'} Tokamax. 'auto' chooses what runs here"
        )
    size, patch = model.image_size, model.patch_size
    if patch < 1 or not sides.fits(size, patch):
        raise UserError(
            f"config.model.patch_size={patch} does not divide config.image_size={size}. Choices: "
            f"{', '.join(str(p) for p in range(4, min(sides.of(size)) + 1) if sides.fits(size, p))}."
        )


def block_flops(tokens: int, width: int, depth: int, mlp_ratio: float) -> float:
    """FLOPs of the matrix products of `depth` transformer blocks, one forward pass of one image."""
    dense = 2 * tokens * width * width * (4 + 2 * mlp_ratio)
    return depth * (dense + 4 * tokens**2 * width)
