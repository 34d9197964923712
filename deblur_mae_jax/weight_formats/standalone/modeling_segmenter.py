"""A U-Net++ or UPerNet on the encoder of a classifier, in plain PyTorch.

This file needs torch, and timm for every encoder but a ConvViT, which is in `modeling_convmae.py` beside it. It reads
the weights and the `config.json` beside it:

    from modeling_segmenter import load
    model = load(".")
    model(images)                      # (B, C, H, W), normalised -> logits (B, classes, H, W); class 0 is background

Names of the encoder are timm's or ConvMAE's, under `encoder`. Part of deblur_mae_jax, Apache-2.0.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

WEIGHTS, CONFIG = "model.safetensors", "config.json"
BINS, SECOND, SECOND_WIDTH = (1, 2, 3, 6), 2, 256
WIDTHS = (256, 128, 64, 32)
# What a classifier has after its last map; a segmenter has no weights for it.
UNUSED = ("norm", "fc_norm", "head", "fc")


def load(folder: str | Path = ".", weights: str = WEIGHTS) -> Segmenter:
    """The network in `folder`, on the CPU and in evaluation mode. A `.safetensors` file needs safetensors."""
    model = Segmenter(json.loads((Path(folder) / CONFIG).read_text(encoding="utf-8")), Path(folder))
    model.load_state_dict(read_weights(Path(folder) / weights), strict=True)
    return model.eval()


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` or `.pth` file."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("model", state)


class ConvNormReLU(nn.Module):
    """A convolution without bias, BatchNorm, ReLU."""

    def __init__(self, before: int, after: int, side: int):
        super().__init__()
        self.conv = nn.Conv2d(before, after, side, padding=side // 2, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, before, H, W)` -> `(B, after, H, W)`."""
        return F.relu(self.norm(self.conv(x)))


class Node(nn.Module):
    """Doubles the sides of a map, concatenates others, and applies two convolutions."""

    def __init__(self, before: int, after: int):
        super().__init__()
        self.conv1, self.conv2 = ConvNormReLU(before, after, 3), ConvNormReLU(after, after, 3)

    def forward(self, x: torch.Tensor, skips: list[torch.Tensor]) -> torch.Tensor:
        """x: the map to enlarge; skips: maps of the doubled sides."""
        return self.conv2(self.conv1(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), *skips], 1)))


class UNetPP(nn.Module):
    """The decoder of U-Net++ (Zhou et al. 2018)."""

    def __init__(self, channels: list[int], classes: int):
        super().__init__()
        deep = channels[::-1]
        self.last = last = len(deep) - 1
        for reach in range(last):
            for start in range(last - reach):
                end = start + reach
                after = WIDTHS[end] if start == 0 else deep[end + 1]
                before = (WIDTHS[end - 1] if start == 0 else deep[end]) if reach else deep[start]
                setattr(self, f"x_{start}_{end}", Node(before + (reach + 1) * deep[end + 1], after))
        setattr(self, f"x_0_{last}", Node(WIDTHS[last - 1], WIDTHS[last]))
        self.out = nn.Conv2d(WIDTHS[last], classes, 3, padding=1)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Maps of four sides, the largest first, to logits at twice its sides."""
        deep, last = maps[::-1], self.last
        nodes: dict[tuple[int, int], torch.Tensor] = {}
        for reach in range(last):
            for start in range(last - reach):
                end = start + reach
                before = nodes[start, end - 1] if reach else deep[start]
                skips = [nodes[other, end] for other in range(start + 1, end + 1)] if reach else []
                nodes[start, end] = getattr(self, f"x_{start}_{end}")(before, [*skips, deep[end + 1]])
        return self.out(getattr(self, f"x_0_{last}")(nodes[0, last - 1], []))


def resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bilinear interpolation to the sides of another map."""
    return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=False)


class UPerNet(nn.Module):
    """The decoder of UPerNet (Xiao et al. 2018); the second head helps in training only."""

    def __init__(self, channels: list[int], classes: int, width: int):
        super().__init__()
        for number in range(len(BINS)):
            setattr(self, f"pool_{number}", ConvNormReLU(channels[-1], width, 1))
        self.bottleneck = ConvNormReLU(channels[-1] + len(BINS) * width, width, 3)
        for number, before in enumerate(channels[:-1]):
            setattr(self, f"lateral_{number}", ConvNormReLU(before, width, 1))
            setattr(self, f"fpn_{number}", ConvNormReLU(width, width, 3))
        self.fpn_bottleneck = ConvNormReLU(len(channels) * width, width, 3)
        self.out = nn.Conv2d(width, classes, 1)
        self.auxiliary = ConvNormReLU(channels[SECOND], SECOND_WIDTH, 3)
        self.auxiliary_out = nn.Conv2d(SECOND_WIDTH, classes, 1)

    def forward(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Maps of four sides, the largest first, to logits at its sides."""
        last = maps[-1]
        pools = [getattr(self, f"pool_{n}")(F.adaptive_avg_pool2d(last, bins)) for n, bins in enumerate(BINS)]
        x = self.bottleneck(torch.cat([last, *(resize(pooled, last) for pooled in pools)], 1))
        paths = [getattr(self, f"lateral_{n}")(y) for n, y in enumerate(maps[:-1])] + [x]
        for n in range(len(paths) - 1, 0, -1):
            paths[n - 1] = paths[n - 1] + resize(paths[n], paths[n - 1])
        paths = [getattr(self, f"fpn_{n}")(y) for n, y in enumerate(paths[:-1])] + [paths[-1]]
        return self.out(self.fpn_bottleneck(torch.cat([resize(y, paths[0]) for y in paths], 1)))


class Enlarge(nn.Linear):
    """A transposed convolution with a kernel as large as its stride, 2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, D, H, W)` -> `(B, D, 2H, 2W)`."""
        B, D, H, W = x.shape
        x = super().forward(x.permute(0, 2, 3, 1)).reshape(B, H, W, 2, 2, D)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(B, D, 2 * H, 2 * W)


class Segmenter(nn.Module):
    """Encoder and decoder, as `config.json` describes them."""

    def __init__(self, config: dict, folder: Path):
        super().__init__()
        self.kind, channels, self.indices = config["kind"], list(config["channels"]), config["indices"]
        self.encoder = _convvit(config, folder) if self.kind == "convvit" else _of_timm(config)
        self.norms = nn.ModuleList(nn.LayerNorm(n, 1e-6) for n in channels) if self.kind != "resnet" else None
        if self.kind in ("vit", "beit"):
            D = channels[0]
            self.enlarge = nn.ModuleList(Enlarge(D, 4 * D) for _ in range(3))
            self.enlarge_norm = nn.BatchNorm2d(D)
        if self.kind == "convvit":
            self.halve = nn.Conv2d(channels[-1], channels[-1], 3, 2, padding=1)
            self.halve_norm = nn.BatchNorm2d(channels[-1])
            channels.append(channels[-1])
        classes, width = config["num_classes"], config["decoder_width"]
        self.decode_head = (
            UNetPP(channels, classes) if config["decoder"] == "unetpp" else UPerNet(channels, classes, width)
        )

    def maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps `(B, D, h, w)` of the encoder, the largest first."""
        if self.kind == "convvit":
            maps, tokens = self.encoder._stem(x, None)
            for block in self.encoder.blocks3:
                tokens = block(tokens)
            return [*maps, tokens.transpose(1, 2).reshape(len(x), -1, *self.encoder.grid)]
        once = sorted(set(self.indices))  # a small ViT gives one map several times
        found = dict(zip(once, self.encoder.forward_intermediates(x, indices=once, intermediates_only=True)))  # noqa: B905
        return [found[index] for index in self.indices]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` -> logits `(B, classes, H, W)`."""
        maps = self.maps(x)
        if self.norms is not None:
            maps = [n(y.permute(0, 2, 3, 1)).permute(0, 3, 1, 2) for n, y in zip(self.norms, maps)]  # noqa: B905
        if self.kind == "convvit":
            maps.append(F.gelu(self.halve_norm(self.halve(maps[-1]))))
        if self.kind in ("vit", "beit"):
            first = self.enlarge[1](F.gelu(self.enlarge_norm(self.enlarge[0](maps[0]))))
            maps = [first, self.enlarge[2](maps[1]), maps[2], F.max_pool2d(maps[3], 2)]
        return resize(self.decode_head(maps), x)


def _of_timm(config: dict) -> nn.Module:
    import timm

    encoder = timm.create_model(config["encoder"]["model"], pretrained=False, **config["encoder"]["arguments"])
    for name in UNUSED:
        if hasattr(encoder, name):
            setattr(encoder, name, nn.Identity())
    return encoder


def _convvit(config: dict, folder: Path) -> nn.Module:
    path = folder / "modeling_convmae.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    encoder = module.ConvMAE({**config["encoder"], "num_classes": 1})
    encoder.fc_norm, encoder.head = nn.Identity(), nn.Identity()
    return encoder
