"""DiffMAE (Wei et al. 2023) in plain PyTorch: the encoder of the visible patches and the denoising decoder.

This file needs torch, and `modeling_d2mae.py` beside it. It reads the weights and the `config.json` beside it:

    from modeling_diffmae import load
    model = load(".")
    model.encode(model.view(image), level)             # tokens (1, prefix + L, D); level only with a blur token
    states = model.states(x, level, ids_keep)          # x (B, C, H, W): the tokens after each encoder block
    model.denoise(states, noisy, ids_mask, step)       # noisy patches (B, M, P*P*C) -> predicted patches

`step` `(B,)` is the strength of the noise, a step of the diffusion. Part of deblur_mae_jax, Apache-2.0.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def _beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


d2mae = _beside("modeling_d2mae")


def load(folder: str | Path = ".", weights: str = WEIGHTS) -> DiffMAE:
    """The network in `folder`, on the CPU and in evaluation mode."""
    folder = Path(folder)
    model = DiffMAE(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    model.load_state_dict(d2mae.read_weights(folder / weights), strict=True)
    return model.eval()


class CrossAttention(nn.Module):
    """Attention of `y` `(B, M, D)` to the tokens `memory` `(B, N, D)`."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, y: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        (B, M, D), N = y.shape, memory.shape[1]
        q = self.q(y).reshape(B, M, self.heads, -1).transpose(1, 2)
        k, v = self.kv(memory).reshape(B, N, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, M, D))


class CrossBlock(nn.Module):
    """Cross-attention, self-attention if `sees_itself`, and an MLP, each after a norm."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, sees_itself: bool):
        super().__init__()
        self.norm_cross, self.cross_attn = nn.LayerNorm(dim, eps=d2mae.EPS), CrossAttention(dim, heads)
        self.sees_itself = sees_itself
        if sees_itself:
            self.norm1, self.attn = nn.LayerNorm(dim, eps=d2mae.EPS), d2mae.Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim, eps=d2mae.EPS), d2mae.Mlp(dim, int(dim * mlp_ratio))

    def forward(self, y: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        y = y + self.cross_attn(self.norm_cross(y), memory)
        if self.sees_itself:
            y = y + self.attn(self.norm1(y))
        return y + self.mlp(self.norm2(y))


class Link(nn.Module):
    """What a decoder block sees of an encoder block."""

    def __init__(self, dim: int, features: int):
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(dim, eps=d2mae.EPS), nn.Linear(dim, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(self.norm(x))


class DiffMAE(d2mae.D2MAE):  # type: ignore[name-defined, misc]
    """The network that `config.json` describes."""

    def _build_rest(self, c: dict) -> None:
        D, E, P, C = c["embed_dim"], c["decoder_embed_dim"], c["patch_size"], c["in_chans"]
        heads, ratio, self.joint, self.time = c["decoder_num_heads"], c["mlp_ratio"], c["decoder"] == "joint", c["time"]
        self.norm = nn.LayerNorm(D, eps=d2mae.EPS)
        self.decoder_noisy_embed = nn.Linear(P * P * C, E)
        if self.time != "none":
            self.decoder_time = nn.Linear(E, E)
        links = 1 if self.joint or c["skip"] == "last" else min(c["decoder_depth"], c["depth"])
        self.decoder_links = nn.ModuleList(Link(D, E) for _ in range(links))
        self.decoder_blocks = nn.ModuleList(
            d2mae.Block(E, heads, ratio) if self.joint else CrossBlock(E, heads, ratio, c["decoder"] == "cross_self")
            for _ in range(c["decoder_depth"])
        )
        self.decoder_norm = nn.LayerNorm(E, eps=d2mae.EPS)
        self.decoder_pred = nn.Linear(E, P * P * C)

    def states(
        self,
        x: torch.Tensor,
        level: torch.Tensor | int | None = None,
        ids_keep: torch.Tensor | None = None,
    ) -> list[torch.Tensor]:
        """`(B, C, H, W)` -> the tokens after each block, `(B, prefix + K, D)`; the last are normalised.

        level: blur level `(B,)` or one number, for a network with a blur token.
        ids_keep: the visible patches `(B, K)`; None: all.
        """
        x, out = self._embedded(x, level, ids_keep), []
        for block in self.blocks:
            x = block(x)
            out.append(x)
        return [*out[:-1], self.norm(x)]

    def denoise(
        self,
        states: list[torch.Tensor],
        noisy: torch.Tensor,
        ids_mask: torch.Tensor,
        step: torch.Tensor,
    ) -> torch.Tensor:
        """Predict patches `(B, M, P*P*C)` from noisy ones at the places `ids_mask` `(B, M)`."""
        E, count = self.decoder_pred.in_features, noisy.shape[1]
        y = self.decoder_noisy_embed(noisy) + d2mae.sincos_2d(E, self.grid, 0).to(noisy)[0][ids_mask]
        if self.time != "none":
            code = self.decoder_time(d2mae.sincos_level(step, E).to(noisy))[:, None]
            y = y + code if self.time == "addition" else torch.cat([code, y], 1)
        if self.joint:
            y = torch.cat([self.decoder_links[0](states[-1]), y], 1)
            for block in self.decoder_blocks:
                y = block(y)
        else:
            seen = [link(state) for link, state in zip(self.decoder_links, states[::-1])]  # noqa: B905
            for number, block in enumerate(self.decoder_blocks):
                y = block(y, seen[min(number, len(seen) - 1)])
        return self.decoder_pred(self.decoder_norm(y[:, -count:]))

    def forward(
        self,
        x: torch.Tensor,
        level: torch.Tensor | int | None = None,
        mask_ratio: float = 0.75,
        noise: torch.Tensor | None = None,
        noisy: torch.Tensor | None = None,
        step: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """All patches `(B, L, P*P*C)`, the visible ones as they are, and the mask `(B, L)`, 1 where hidden.

        noise: `(B, L)`, chooses the hidden patches.
        noisy: all patches with noise `(B, L, P*P*C)`, of which the hidden ones are used; None: zeros.
        step: strength of that noise `(B,)`; None: 1.
        """
        B, L, patches = x.shape[0], self.num_patches, self.patchify(x)
        if mask_ratio == 0:
            return patches, torch.zeros(B, L)
        order = (torch.rand(B, L) if noise is None else noise).argsort(dim=1, stable=True)
        keep = int(L * (1 - mask_ratio))
        at = lambda ids: ids[..., None].expand(-1, -1, patches.shape[2])
        hidden = (torch.zeros_like(patches) if noisy is None else noisy).gather(1, at(order[:, keep:]))
        step = torch.ones(B, dtype=torch.long) if step is None else step
        pred = self.denoise(self.states(x, level, order[:, :keep]), hidden, order[:, keep:], step)
        mask = torch.ones(B, L).scatter(1, order[:, :keep], 0.0)
        return patches.scatter(1, at(order[:, keep:]), pred), mask

    def search(self, image: torch.Tensor, step: int = 2) -> tuple[int, dict[int, float]]:
        """Raise `ValueError`: this network returns visible patches as they are."""
        raise ValueError("DiffMAE does not predict visible patches, so it cannot search the blur of an image")
