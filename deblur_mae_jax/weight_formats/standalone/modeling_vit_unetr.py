"""A ViT with the convolutional decoder of UNETR (Hatamizadeh et al. 2022), in 2-D, in plain PyTorch.

This file needs torch, and `modeling_d2mae.py` beside it. It reads the weights and the `config.json` beside it:

    from modeling_vit_unetr import load
    model = load(".")
    model(images)                      # (B, C, H, W), normalised -> logits (B, classes, H, W); class 0 is background
    model(images, level)               # a network with a blur token

Part of deblur_mae_jax, Apache-2.0.
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
EPS = 1e-6


def _beside(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


d2mae = _beside("modeling_d2mae")


def load(folder: str | Path = ".", weights: str = WEIGHTS) -> ViTUNETR:
    """The network in `folder`, on the CPU and in evaluation mode."""
    folder = Path(folder)
    model = ViTUNETR(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    model.load_state_dict(d2mae.read_weights(folder / weights), strict=True)
    return model.eval()


def factors(patch_size: int) -> list[int]:
    """The steps from the grid of patches to pixels: prime factors of the patch size, the largest first."""
    out, prime = [], 2
    while patch_size > 1:
        while patch_size % prime == 0:
            out.append(prime)
            patch_size //= prime
        prime += 1
    return sorted(out, reverse=True)


class Expand(nn.Linear):
    """A transposed convolution with a kernel as large as its stride."""

    def __init__(self, before: int, after: int, factor: int):
        super().__init__(before, factor**2 * after)
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, D, H, W)` -> `(B, after, fH, fW)`."""
        (B, _, H, W), f = x.shape, self.factor
        x = super().forward(x.permute(0, 2, 3, 1)).reshape(B, H, W, f, f, -1)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(B, -1, H * f, W * f)


class Refine(nn.Module):
    """Two 3x3 convolutions with norms over each example, and a projected skip."""

    def __init__(self, before: int, after: int):
        super().__init__()
        groups = after // max(1, after // 4)
        for name, width, side in (("conv1", before, 3), ("conv2", after, 3), ("skip", before, 1)):
            self.add_module(name, nn.Conv2d(width, after, side, padding=side // 2, bias=False))
            self.add_module(f"{name}_norm", nn.GroupNorm(groups, after, EPS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv2_norm(self.conv2(F.leaky_relu(self.conv1_norm(self.conv1(x)))))
        return F.leaky_relu(y + self.skip_norm(self.skip(x)))


class Segmenter(nn.Module):
    """Maps hidden states `(B, D, h, w)`, the deepest first, and the image to logits `(B, classes, H, W)`."""

    def __init__(self, config: dict):
        super().__init__()
        D, self.steps = config["embed_dim"], factors(config["patch_size"])
        width, scale = config["width"] * 2 ** len(self.steps), 1
        self.bottom = Refine(D, width)
        for number, factor in enumerate(self.steps):
            scale, width = scale * factor, width // 2
            self.add_module(f"up_{number}", Expand(2 * width, width, factor))
            if number < len(self.steps) - 1:
                self.add_module(f"skip_{number}", Expand(D, width, scale))
            else:
                self.picture = Refine(config["in_chans"], width)
            self.add_module(f"refine_{number}", Refine(2 * width, width))
        self.out = nn.Linear(width, config["num_classes"])

    def forward(self, hidden: list[torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        x = self.bottom(hidden[0])
        for number in range(len(self.steps)):
            x = getattr(self, f"up_{number}")(x)
            last = number == len(self.steps) - 1
            skip = self.picture(images) if last else getattr(self, f"skip_{number}")(hidden[number + 1])
            x = getattr(self, f"refine_{number}")(torch.cat([x, skip], 1))
        return self.out(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ViTUNETR(d2mae.D2MAE):  # type: ignore[name-defined, misc]
    """Encoder and decoder, as `config.json` describes them."""

    def _build_rest(self, c: dict) -> None:
        self.norm = nn.LayerNorm(c["embed_dim"], eps=EPS)
        self.segmenter = Segmenter(c)

    def forward(self, x: torch.Tensor, level: torch.Tensor | int | None = None) -> torch.Tensor:
        """`(B, C, H, W)` -> logits `(B, classes, H, W)`; level: `(B,)` or one number."""
        images, x, states = x, self._embedded(x, level), []
        for block in self.blocks:
            x = block(x)
            states.append(x)
        wanted, depth = len(self.segmenter.steps), len(states)
        chosen = [max(1, round(depth * (wanted - i) / wanted)) - 1 for i in range(wanted)]
        used = [self.norm(states[-1]), *(states[number] for number in chosen[1:])]
        maps = [y[:, self.prefix :].transpose(1, 2).reshape(len(y), -1, *self.grid) for y in used]
        return self.segmenter(maps, images)
