"""What goes into an encoder: patches, the code of the blur level, and the sizes of the variants."""

from __future__ import annotations

import importlib.util
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.models import layers, position

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


def _patch_bias_init(fan_in: int):
    """The bias of a PyTorch convolution: uniform in +-1/sqrt(fan_in)."""

    def init(key, shape, dtype=jnp.float32):
        bound = fan_in**-0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class PatchEmbed(nn.Module):
    """Linear embedding of flattened patches, stored as the P x P convolution it is in PyTorch."""

    patch_size: int
    in_chans: int
    embed_dim: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, patches):
        return _PatchProjection(
            self.patch_size, self.in_chans, self.embed_dim, self.dtype, name="proj"
        )(patches)


class _PatchProjection(nn.Module):
    patch_size: int
    in_chans: int
    embed_dim: int
    dtype: Any

    @nn.compact
    def __call__(self, patches):
        P, C, D = self.patch_size, self.in_chans, self.embed_dim

        def kernel_init(key, shape, dtype=jnp.float32):
            return layers.xavier(key, (P * P * C, D), dtype).reshape(shape)

        kernel = self.param("kernel", kernel_init, (P, P, C, D))
        bias = self.param("bias", _patch_bias_init(P * P * C), (D,))
        x, kernel, bias = nn.dtypes.promote_dtype(patches, kernel, bias, dtype=self.dtype)
        x = x.reshape(-1, P * P * C)
        return (layers.matmul(x, kernel.reshape(P * P * C, D)) + bias).reshape(
            *patches.shape[:-1], D
        )


class LevelCode(nn.Module):
    """The vector that tells the network the level of blur: `(B,)` levels -> `(B, D)`.

    learned: DDPM sinusoid plus one learned vector, D2MAE's "0.0009 %" of extra parameters (D numbers);
    sinusoid: nothing learned; table: one learned row per level; mlp: a two-layer map of the sinusoid.
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


def encoder_sizes(variant: str, fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(width, depth and heads by name, the other fields); a size in `fields` that is not 0 wins."""
    if variant not in VARIANTS:
        raise unknown("config.model.variant", variant, VARIANTS)
    sizes: dict[str, Any] = dict(
        zip(("embed_dim", "depth", "num_heads"), VARIANTS[variant], strict=True)
    )
    rest = {k: v for k, v in fields.items() if k not in sizes}
    sizes |= {k: fields[k] for k in sizes if fields.get(k)}
    if sizes["embed_dim"] % sizes["num_heads"] or sizes["embed_dim"] % 4:
        raise UserError(
            f"config.model.embed_dim={sizes['embed_dim']} must be divisible by 4 and by "
            f"config.model.num_heads={sizes['num_heads']}"
        )
    return sizes, rest


def check(image_size: int, patch_size: int, conditioning: str, attention: str, dtype: str) -> None:
    """Raise `UserError` for fields that no network can be built from."""
    if conditioning not in CONDITIONINGS:
        raise unknown("config.model.conditioning", conditioning, CONDITIONINGS)
    if attention not in layers.ATTENTIONS:
        raise unknown("config.model.attention", attention, layers.ATTENTIONS)
    backend = jax.default_backend()
    if attention == "cudnn" and (dtype != "bfloat16" or backend != "gpu"):
        raise UserError(
            "config.model.attention=cudnn needs an NVIDIA GPU and config.model.dtype=bfloat16; "
            f"this is a {backend} with {dtype}. 'auto' chooses what runs here"
        )
    tokamax = importlib.util.find_spec("tokamax") is not None
    if attention == "triton" and not (backend == "gpu" and tokamax):
        raise UserError(
            "config.model.attention=triton needs an NVIDIA GPU (Ampere or newer) and Tokamax (pip install tokamax); "
            f"this is a {backend} {'with' if tokamax else 'without'} Tokamax. 'auto' chooses what runs here"
        )
    if dtype not in ("float32", "bfloat16"):
        raise unknown("config.model.dtype", dtype, ("auto", "bfloat16", "float32"))
    if patch_size < 1 or image_size % patch_size:
        raise UserError(
            f"config.model.patch_size={patch_size} does not divide "
            f"config.image_size={image_size}. Choices: "
            f"{', '.join(str(p) for p in range(4, image_size + 1) if image_size % p == 0)}."
        )


def block_flops(tokens: int, width: int, depth: int, mlp_ratio: float) -> float:
    """FLOPs of the matrix products of `depth` transformer blocks, one forward pass of one image."""
    dense = 2 * tokens * width * width * (4 + 2 * mlp_ratio)
    return depth * (dense + 4 * tokens**2 * width)
