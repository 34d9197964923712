"""ConvMAE and its classifier ConvViT in plain PyTorch.

This file needs only torch. It reads the weights and the `config.json` beside it:

    from modeling_convmae import load
    model = load(".")
    model.encode(images)               # (B, C, H, W), normalised -> tokens (B, L, D)
    model(images, 0.75, noise)         # predicted patches (B, L, P*P*C)
    model.classify(images)             # a fine-tuned network: logits (B, classes)

Names are those of ConvMAE's code (Gao et al. 2022). Part of deblur_mae_jax, Apache-2.0.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

WEIGHTS, CONFIG = "model.safetensors", "config.json"
PATCH, STEPS = 16, (4, 2, 2)


def load(folder: str | Path = ".", weights: str = WEIGHTS) -> ConvMAE:
    """The network in `folder`, on the CPU and in evaluation mode. A `.safetensors` file needs safetensors."""
    model = ConvMAE(json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8")))
    model.load_state_dict(read_weights(Path(folder) / weights), strict=True)
    return model.eval()


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` or `.pth` file."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("model", state)


class Embedding(nn.Module):
    """A convolution as large as its stride, a norm and a GELU."""

    def __init__(self, inputs: int, width: int, step: int):
        super().__init__()
        self.proj = nn.Conv2d(inputs, width, step, step)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` -> `(B, width, H / step, W / step)`."""
        return F.gelu(over_channels(self.norm, self.proj(x)))


def over_channels(norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """A LayerNorm over the channels of `(B, C, H, W)`."""
    return norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvMlp(nn.Module):
    """Two convolutions of 1 x 1."""

    def __init__(self, width: int, ratio: float):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, int(ratio * width), 1), nn.Conv2d(int(ratio * width), width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep the shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class ConvBlock(nn.Module):
    """A depthwise convolution in place of attention."""

    def __init__(self, width: int, ratio: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.attn = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.mlp = ConvMlp(width, ratio)

    def forward(self, x: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
        """visible: `(B, 1, H, W)`, 1 where the image may be seen."""
        y = self.conv1(over_channels(self.norm1, x))
        x = x + self.conv2(self.attn(y if visible is None else y * visible))
        return x + self.mlp(over_channels(self.norm2, x))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep the shape `(B, L, D)`."""
        B, L, D = x.shape
        q, k, v = self.qkv(x).reshape(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, L, D))


class Mlp(nn.Module):
    """Two linear layers."""

    def __init__(self, width: int, ratio: float):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, int(ratio * width)), nn.Linear(int(ratio * width), width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep the shape."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, width: int, heads: int, ratio: float):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn, self.mlp = Attention(width, heads), Mlp(width, ratio)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep the shape `(B, L, D)`."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class ConvMAE(nn.Module):
    """The autoencoder, or the classifier if the network has classes."""

    def __init__(self, network: dict):
        super().__init__()
        self.classifies = network["kind"] == "classify"
        widths = [network["in_chans"], *network["stem_dims"], network["embed_dim"]]
        ratio, D = network["mlp_ratio"], network["embed_dim"]
        size = network["image_size"]
        height, width = (size, size) if isinstance(size, int) else size
        self.grid = (height // PATCH, width // PATCH)
        self.num_patches = self.grid[0] * self.grid[1]
        for stage in range(3):
            setattr(self, f"patch_embed{stage + 1}", Embedding(widths[stage], widths[stage + 1], STEPS[stage]))
        self.patch_embed4 = nn.Linear(D, D)
        for stage, depth in enumerate(network["stem_depths"], start=1):
            blocks = nn.ModuleList(ConvBlock(widths[stage], ratio) for _ in range(depth))
            setattr(self, f"blocks{stage}", blocks)
        self.blocks3 = nn.ModuleList(Block(D, network["num_heads"], ratio) for _ in range(network["depth"]))
        self.pos_embed = nn.Parameter(torch.zeros(1, self.num_patches, D))
        if self.classifies:
            self.fc_norm, self.head = nn.LayerNorm(D, 1e-6), nn.Linear(D, network["num_classes"])
            return
        self.stage1_output_decode = nn.Conv2d(widths[1], D, 4, 4)
        self.stage2_output_decode = nn.Conv2d(widths[2], D, 2, 2)
        self.norm = nn.LayerNorm(D, 1e-6)
        inner = network["decoder_embed_dim"]
        self.decoder_embed, self.mask_token = nn.Linear(D, inner), nn.Parameter(torch.zeros(1, 1, inner))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, self.num_patches, inner))
        heads = network["decoder_num_heads"]
        self.decoder_blocks = nn.ModuleList(Block(inner, heads, ratio) for _ in range(network["decoder_depth"]))
        self.decoder_norm = nn.LayerNorm(inner, 1e-6)
        self.decoder_pred = nn.Linear(inner, PATCH**2 * network["in_chans"])

    def _stem(self, x: torch.Tensor, visible: torch.Tensor | None) -> tuple[list[torch.Tensor], torch.Tensor]:
        maps = []
        for stage, times in ((1, 4), (2, 2)):
            x = getattr(self, f"patch_embed{stage}")(x)
            seen = None
            if visible is not None:
                square = visible.reshape(-1, 1, *self.grid)
                seen = square.repeat_interleave(times, 2).repeat_interleave(times, 3)
            for block in getattr(self, f"blocks{stage}"):
                x = block(x, seen)
            maps.append(x)
        x = self.patch_embed4(self.patch_embed3(x).flatten(2).transpose(1, 2))
        return maps, x + self.pos_embed

    def encode(self, x: torch.Tensor, keep: torch.Tensor | None = None) -> torch.Tensor:
        """`(B, C, H, W)` -> tokens `(B, K, D)`; keep: numbers of the visible patches `(B, K)`, None for all."""
        visible = None
        if keep is not None:
            visible = torch.zeros(len(x), self.num_patches).scatter(1, keep, 1.0)
        maps, x = self._stem(x, visible)
        first, second = self.stage1_output_decode(maps[0]), self.stage2_output_decode(maps[1])
        added = (first + second).flatten(2).transpose(1, 2)
        if keep is not None:
            index = keep[..., None].expand(-1, -1, x.shape[2])
            x, added = x.gather(1, index), added.gather(1, index)
        for block in self.blocks3:
            x = block(x)
        return self.norm(x + added)

    def forward(self, x: torch.Tensor, mask_ratio: float = 0.0, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Predicted patches `(B, L, P*P*C)`; noise: `(B, L)`, the patches with the smallest values stay visible."""
        L = self.num_patches
        if mask_ratio == 0:
            y = self.decoder_embed(self.encode(x))
        else:
            order = torch.argsort(noise, dim=1)
            keep = order[:, : int(L * (1 - mask_ratio))]
            shown = self.decoder_embed(self.encode(x, keep))
            y = self.mask_token.expand(len(x), L, -1).clone()
            y.scatter_(1, keep[..., None].expand(-1, -1, y.shape[2]), shown)
        y = y + self.decoder_pos_embed
        for block in self.decoder_blocks:
            y = block(y)
        return self.decoder_pred(self.decoder_norm(y))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` -> the input of the head `(B, D)`."""
        x = self._stem(x, None)[1]
        for block in self.blocks3:
            x = block(x)
        return self.fc_norm(x.mean(1))

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` -> logits `(B, classes)`."""
        return self.head(self.features(x))
