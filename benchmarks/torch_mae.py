"""The same ViT-MAE training step in PyTorch, built from timm's blocks, for comparison with ours.

This is a plain, efficient implementation: fused qkv and scaled-dot-product attention from timm, gathered visible
patches, AdamW (fused where there is a GPU), bfloat16 by autocast. Images are already on the device.
"""

from __future__ import annotations

import functools
import sys
import types

import numpy as np

# With a CPU build of another torch release, torchvision looks up operators that do not exist.
# timm needs none of them.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))

import torch
from timm.models.vision_transformer import Block
from torch import nn

from deblur_mae_jax.models.position import sincos_2d


class TorchMAE(nn.Module):
    """Encoder on visible patches, decoder on all patches, with D2MAE's level token if `levels` is set."""

    def __init__(self, model, levels: bool):
        super().__init__()
        self.patch_size, self.grid = model.patch_size, model.grid
        D, E = model.embed_dim, model.decoder_embed_dim
        pixels = model.patch_size**2 * model.in_chans
        self.levels, self.prefix = levels, 2 if levels else 1
        self.proj = nn.Linear(pixels, D)
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, D))
        self.blur_token = nn.Parameter(0.02 * torch.randn(1, 1, D))
        self.mask_token = nn.Parameter(0.02 * torch.randn(1, 1, E))

        def stack(width, depth, heads):
            norm = functools.partial(nn.LayerNorm, eps=1e-6)
            block = lambda: Block(width, heads, model.mlp_ratio, qkv_bias=True, norm_layer=norm)
            return nn.Sequential(*[block() for _ in range(depth)], norm(width))

        self.blocks = stack(D, model.depth, model.num_heads)
        self.embed = nn.Linear(D, E)
        self.decoder = stack(E, model.decoder_depth, model.decoder_num_heads)
        self.pred = nn.Linear(E, pixels)
        self.register_buffer("pos", torch.tensor(sincos_2d(D, self.grid, 0))[None])
        self.register_buffer("decoder_pos", torch.tensor(sincos_2d(E, self.grid, self.prefix))[None])
        half = D // 2
        frequency = np.exp(-np.log(10000.0) * np.arange(half) / (half - 1)).astype(np.float32)
        self.register_buffer("frequency", torch.tensor(frequency))

    def patchify(self, images):
        B, H, W, C = images.shape
        P = self.patch_size
        x = images.reshape(B, H // P, P, W // P, P, C).permute(0, 1, 3, 2, 4, 5)
        return x.reshape(B, -1, P * P * C)

    def forward(self, inputs, targets, level, mask_ratio: float, noise=None):
        """Mean squared error over all patches; `noise` `(B, L)` fixes the mask."""
        patches = self.patchify(inputs)
        B, L, _ = patches.shape
        noise = torch.rand(B, L, device=inputs.device) if noise is None else noise
        order = noise.argsort(dim=1)
        restore = order.argsort(dim=1)
        keep = int(L * (1 - mask_ratio))
        x = self.proj(patches)
        # On a GPU the tables have the type of the tokens, so that the blocks add in bfloat16, as ours do.
        pos, decoder_pos = (t.to(x.dtype) if x.is_cuda else t for t in (self.pos, self.decoder_pos))
        x = x + pos
        x = torch.gather(x, 1, order[:, :keep, None].expand(-1, -1, x.shape[-1]))
        tokens = [self.cls_token.to(x.dtype).expand(B, -1, -1)]
        if self.levels:
            angle = level[:, None].float() * self.frequency
            code = torch.cat([angle.sin(), angle.cos()], dim=1)[:, None]
            tokens.append((code + self.blur_token).to(x.dtype))
        x = self.embed(self.blocks(torch.cat([*tokens, x], dim=1)))
        hidden = self.mask_token.expand(B, L - keep, -1)
        full = torch.cat([x[:, self.prefix :], hidden.to(x.dtype)], dim=1)
        full = torch.gather(full, 1, restore[:, :, None].expand(-1, -1, full.shape[-1]))
        x = self.decoder(torch.cat([x[:, : self.prefix], full], dim=1) + decoder_pos)
        pred = self.pred(x[:, self.prefix :])
        return ((pred.float() - self.patchify(targets)) ** 2).mean()


class TorchStep:
    """One training step on fixed, already degraded images; call it to run it to completion."""

    def __init__(self, model, batch: dict, mask_ratio: float, compiled: bool, bfloat16: bool):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        cuda = self.device == "cuda"
        self.batch = {k: torch.tensor(np.asarray(v)).to(self.device) for k, v in batch.items()}
        self.batch.setdefault("level", torch.ones(len(self.batch["inputs"]), device=self.device))
        net = TorchMAE(model, model.conditioning == "token").to(self.device)
        self.net = torch.compile(net) if compiled else net
        self.optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=cuda)
        self.mask_ratio, self.bfloat16, self.cuda = mask_ratio, bfloat16, cuda
        if cuda:
            torch.cuda.reset_peak_memory_stats()

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            loss = self.net(self.batch["inputs"], self.batch["targets"], self.batch["level"], self.mask_ratio)
        loss.backward()
        self.optimizer.step()
        if self.cuda:
            torch.cuda.synchronize()

    def peak_bytes(self) -> int | None:
        """Peak device memory, where the device counts it."""
        return torch.cuda.max_memory_allocated() if self.cuda else None
