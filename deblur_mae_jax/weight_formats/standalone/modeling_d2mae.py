"""MAE, DeblurrMAE and D2MAE in plain PyTorch: encoder, decoder, blur token, Gaussian blur, blur search.

This file needs only torch. It reads the weights and the `config.json` beside it:

    from modeling_d2mae import load
    model = load(".")
    image = torch.from_numpy(array)                  # (H, W) or (H, W, 3), gray levels 0..255
    level, errors = model.search(image)              # optimal blurriness search, D2MAE eq. 4 and 5
    model.encode(model.view(image, level), level)    # tokens (1, prefix + L, D)
    model(model.view(image, level), level)           # predicted patches (1, L, P*P*C), mask (1, L)
    model.predict(image)                             # a fine-tuned network: probabilities (classes,)

A network without blur levels (MAE, DeblurrMAE) takes no `level`. Images are blurred at their own
resolution, before they are resized, exactly as in training. Part of deblur_mae_jax, Apache-2.0.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

WEIGHTS, CONFIG = "d2mae.safetensors", "config.json"
# The pre-trained network that searches the blur for a fine-tuned network.
SEARCHER = ("searcher.safetensors", "searcher.json")
EPS = 1e-6


def load(folder: str | Path = ".", weights: str = WEIGHTS, config: str = CONFIG) -> D2MAE:
    """The network in `folder`, on the CPU and in evaluation mode."""
    folder = Path(folder)
    model = D2MAE(json.loads((folder / config).read_text(encoding="utf-8")))
    model.load_state_dict(read_weights(folder / weights), strict=True)
    if config == CONFIG and (folder / SEARCHER[1]).exists():
        model.searcher.append(load(folder, *SEARCHER))
    return model.eval()


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.safetensors` or `.pth` file."""
    if Path(path).suffix == ".safetensors":
        return read_safetensors(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return state.get("model", state)


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file: the length of the header (8 bytes), the header (JSON), the values."""
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
    data = Path(path).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    out = {}
    for name, item in header.items():
        if name == "__metadata__":
            continue
        first, last = (8 + length + offset for offset in item["data_offsets"])
        values = torch.frombuffer(bytearray(data[first:last]), dtype=kinds[item["dtype"]])
        out[name] = values.reshape(item["shape"])
    return out


def check_image(image: torch.Tensor, max_side: int) -> None:
    """Raise `ValueError` for what is no image of gray levels 0..255, or larger than those of training."""
    if not isinstance(image, torch.Tensor):
        raise ValueError(f"image: expected a tensor, got {type(image).__name__}; use torch.from_numpy")
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise ValueError(f"image: shape {tuple(image.shape)}; expected (H, W), (H, W, 1) or (H, W, 3)")
    low, high = float(image.min()), float(image.max())
    if low != low or low < 0 or high > 255:
        raise ValueError(f"image: values from {low:g} to {high:g}; expected gray levels 0..255")
    if image.is_floating_point() and 0 < high <= 1:
        raise ValueError(f"image: values from {low:g} to {high:g} are nearly black; multiply by 255")
    if max_side and max(image.shape[:2]) > max_side:
        raise ValueError(
            f"image: {image.shape[1]} x {image.shape[0]} pixels; in training, larger ones were shrunk to "
            f"{max_side} on their long side: do so first (Pillow, LANCZOS)"
        )


def gaussian_taps(sigma: float, kernel: str = "opencv_uint8") -> torch.Tensor:
    """The Gaussian kernel of OpenCV for 8-bit or float images (`opencv_float`), or of SciPy.

    The 8-bit kernel has 8 fractional bits; its rounding errors are carried from the edge inward.
    """
    radius = (round((6 if kernel == "opencv_uint8" else 8) * sigma + 1) | 1) // 2
    radius = int(4 * sigma + 0.5) if kernel == "scipy" else radius
    weights = [math.exp(-0.5 * (x / sigma) ** 2) for x in range(-radius, radius + 1)]
    total, error, side = sum(weights), 0.0, []
    if kernel != "opencv_uint8":
        return torch.tensor(weights) / total
    for weight in weights[:radius]:
        exact = 256 * weight / total + error
        side.append(round(exact))
        error = exact - side[-1]
    return torch.tensor([*side, 256 - 2 * sum(side), *side[::-1]]) / 256.0


def gaussian_blur(image: torch.Tensor, sigma: float, kernel: str = "opencv_uint8") -> torch.Tensor:
    """Blur `(C, H, W)` with reflected borders (the edge pixel is not repeated)."""
    taps = gaussian_taps(sigma, kernel)
    radius = len(taps) // 2
    padded = F.pad(image[:, None], (radius,) * 4, mode="reflect")
    padded = F.conv2d(padded, taps.reshape(1, 1, 1, -1))
    return F.conv2d(padded, taps.reshape(1, 1, -1, 1))[:, 0]


def to_gray(image: torch.Tensor) -> torch.Tensor:
    """`(C, H, W)` -> `(1, H, W)`, rounded to whole gray levels."""
    if image.shape[0] == 1:
        return image
    weights = torch.tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)
    return torch.floor((image * weights).sum(0, keepdim=True) + 0.5)


def resize_matrix(length: int, out: int, size: int) -> torch.Tensor:
    """Pillow's antialiased bicubic resize of `length` pixels to `out`, its central `size` rows `(size, length)`."""
    scale = length / out
    support = max(scale, 1.0)
    first = round((out - size) / 2)
    centre = (first + torch.arange(size) + 0.5) * scale
    x = ((torch.arange(length) + 0.5 - centre[:, None]) / support).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    weight = torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros(())))
    return weight / weight.sum(1, keepdim=True)


def pair(value: int | list[int]) -> tuple[int, int]:
    """(height, width), from one number or two."""
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def sincos_2d(dim: int, grid: tuple[int, int], prefix: int) -> torch.Tensor:
    """MAE's fixed table `(1, prefix + L, dim)`: columns in the first half of the channels, zero prefix."""
    omega = 10000 ** (-torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))

    def axis(length: int) -> torch.Tensor:
        angles = torch.arange(length, dtype=torch.float64)[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], 1)

    column, row = axis(grid[1]).repeat(grid[0], 1), axis(grid[0]).repeat_interleave(grid[1], 0)
    table = torch.cat([column, row], 1)
    return torch.cat([torch.zeros(prefix, dim, dtype=torch.float64), table])[None].float()


def sincos_level(level: torch.Tensor, dim: int) -> torch.Tensor:
    """DDPM's embedding of the blur level: `(B,)` -> `(B, dim)`."""
    half = dim // 2
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float64) / (half - 1))
    angles = level.float()[:, None] * frequency.float()
    return torch.cat([angles.sin(), angles.cos()], 1)


class Attention(nn.Module):
    """Self-attention with a fused qkv projection."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, L, D = x.shape
        q, k, v = self.qkv(x).reshape(B, L, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, L, D))


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class LevelCode(nn.Module):
    """The vector of a blur level; see `code` in the config: learned, sinusoid, table or mlp."""

    def __init__(self, dim: int, code: str, num_levels: int):
        super().__init__()
        self.dim, self.code = dim, code
        if code == "table":
            self.table = nn.Parameter(torch.zeros(num_levels + 1, dim))
        if code == "mlp":
            self.fc1, self.fc2 = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, level: torch.Tensor) -> torch.Tensor:
        if self.code == "table":
            return self.table[level]
        x = sincos_level(level, self.dim)
        return self.fc2(F.silu(self.fc1(x))) if self.code == "mlp" else x


class D2MAE(nn.Module):
    """The network that `config.json` describes; parameter names are those of MAE's code."""

    def __init__(self, config: dict):
        super().__init__()
        self.config = c = config
        D, P, C = c["embed_dim"], c["patch_size"], c["in_chans"]
        height, width = pair(c["image_size"])
        self.grid = (height // P, width // P)
        self.num_patches = self.grid[0] * self.grid[1]
        self.sigmas = c["sigmas"]
        self.searcher: list[D2MAE] = []  # a list, so that its weights are not counted as this one's
        self.conditioning = c["conditioning"]
        self.prefix = 2 if self.conditioning == "token" else 1
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        if self.conditioning != "none":
            if c["level_code"] == "learned":
                self.blur_token = nn.Parameter(torch.zeros(1, 1, D))
            self.level_embed = LevelCode(D, c["level_code"], len(self.sigmas))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(C, D, P, P)})
        self.blocks = nn.ModuleList(Block(D, c["num_heads"], c["mlp_ratio"]) for _ in range(c["depth"]))
        self.pos_embed = nn.Parameter(sincos_2d(D, self.grid, self.prefix), requires_grad=c["task"] != "masked_recon")
        self._build_rest(c)

    def _build_rest(self, c: dict) -> None:
        """The layers after the encoder's blocks: a classifier, or the norm and MAE's decoder."""
        D, P, C = c["embed_dim"], c["patch_size"], c["in_chans"]
        if c["task"] == "classify":
            name = "fc_norm" if c["pool"] == "mean" else "norm"
            self.add_module(name, nn.LayerNorm(D, eps=EPS))
            if not c["classes"]:  # an encoder alone
                return
            head: nn.Module = nn.Linear(D, len(c["classes"]))
            if c["probe"]:
                head = nn.Sequential(nn.BatchNorm1d(D, affine=False, eps=EPS), head)
            self.head = head
            return
        E = c["decoder_embed_dim"]
        self.decoder_prefix = self.prefix if c["decoder_level_token"] else 1
        self.norm = nn.LayerNorm(D, eps=EPS)
        self.decoder_embed = nn.Linear(D, E)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, E))
        table = sincos_2d(E, self.grid, self.decoder_prefix)
        self.decoder_pos_embed = nn.Parameter(table, requires_grad=False)
        self.decoder_blocks = nn.ModuleList(
            Block(E, c["decoder_num_heads"], c["mlp_ratio"]) for _ in range(c["decoder_depth"])
        )
        self.decoder_norm = nn.LayerNorm(E, eps=EPS)
        self.decoder_pred = nn.Linear(E, P * P * C)

    # Images

    def view(
        self,
        image: torch.Tensor,
        level: int | None = None,
        degraded: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Preprocess one image: blur, resize, crop the centre, normalise; returns `(1, C, H, W)`.

        image: `(H, W)` or `(H, W, 3)`, gray levels 0..255.
        level: the blur level; 0 is the sharp image.
        degraded: `(H, W)`, for a network that was not trained with a Gaussian blur.
        """
        c = self.config
        check_image(image, c["max_side"])
        if self.sigmas and degraded is None and level not in range(len(self.sigmas) + 1):
            raise ValueError(f"level={level}: expected a level from 1 to {len(self.sigmas)}, or 0 for the sharp image")
        x = image.float()[None] if image.ndim == 2 else image.float().permute(2, 0, 1)
        x = to_gray(x) if c["in_chans"] == 1 else x.expand(3, -1, -1)
        sigma = None if level == 0 else c["sigma"] if level is None else self.sigmas[level - 1] or None
        if level is None and degraded is None and c["degradation"] not in ("none", "gaussian"):
            raise ValueError(f"trained with {c['degrade']}: pass level=0 or the `degraded` image")
        if degraded is not None:
            x, sigma = degraded.float()[None], None
        native = c["blur_site"] == "native"
        if sigma is not None and native:
            sharp = bool(gaussian_taps(sigma, c["kernel"]).max() == 1)  # too weak a blur to change anything
            x = self._resize(gaussian_blur(to_gray(x), sigma, c["kernel"]), clip=sharp)
        else:
            x = self._resize(x)
            x = x if sigma is None else gaussian_blur(to_gray(x), sigma, c["kernel"])
        x = to_gray(x) if c["gray_target"] else x
        x = x.expand(c["in_chans"], -1, -1) / 255
        mean, std = (torch.tensor(c[name]).reshape(-1, 1, 1) for name in ("mean", "std"))
        return ((x - mean) / std)[None]

    def _resize(self, x: torch.Tensor, clip: bool = True) -> torch.Tensor:
        """Cover `resize_to`, then cut the central part; columns first and clipped, as Pillow does."""
        size, (high, wide) = pair(self.config["image_size"]), pair(self.config["resize_to"])
        height, width = x.shape[1:]
        by_height = high * width >= wide * height
        rows = resize_matrix(height, high if by_height else wide * height // width, size[0])
        columns = resize_matrix(width, high * width // height if by_height else wide, size[1])
        x = x @ columns.T
        x = x.clamp(0, 255) if clip else x
        return (rows @ x).clamp(0, 255)

    def patchify(self, x: torch.Tensor) -> torch.Tensor:
        """`(B, C, H, W)` -> `(B, L, P*P*C)`, channel fastest."""
        P, (rows, columns) = self.config["patch_size"], self.grid
        B, C = x.shape[:2]
        x = x.reshape(B, C, rows, P, columns, P).permute(0, 2, 4, 3, 5, 1)
        return x.reshape(B, rows * columns, P * P * C)

    def unpatchify(self, patches: torch.Tensor) -> torch.Tensor:
        """The inverse of the above: patches -> `(B, C, H, W)`."""
        P, C, (rows, columns) = self.config["patch_size"], self.config["in_chans"], self.grid
        x = patches.reshape(-1, rows, columns, P, P, C).permute(0, 5, 1, 3, 2, 4)
        return x.reshape(-1, C, rows * P, columns * P)

    # Network

    def _code(self, level: torch.Tensor | int, B: int) -> torch.Tensor:
        code = self.level_embed(torch.as_tensor(level).expand(B))
        return code[:, None] + (self.blur_token if hasattr(self, "blur_token") else 0)

    def _embedded(
        self,
        x: torch.Tensor,
        level: torch.Tensor | int | None = None,
        ids_keep: torch.Tensor | None = None,
    ) -> torch.Tensor:
        B = x.shape[0]
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = x + self.pos_embed[:, self.prefix :]
        prefix = [self.cls_token.expand(B, -1, -1)]
        if self.conditioning == "none":
            level = None
        elif level is None:
            raise ValueError("this network needs the blur level of every image")
        if self.conditioning == "addition":
            x = x + self._code(level, B)
        elif self.conditioning == "token":
            prefix.append(self._code(level, B))
        if ids_keep is not None:
            x = x.gather(1, ids_keep[..., None].expand(-1, -1, x.shape[-1]))
        return torch.cat([torch.cat(prefix, 1) + self.pos_embed[:, : self.prefix], x], 1)

    def _tokens(
        self,
        x: torch.Tensor,
        level: torch.Tensor | int | None = None,
        ids_keep: torch.Tensor | None = None,
    ) -> torch.Tensor:
        x = self._embedded(x, level, ids_keep)
        for block in self.blocks:
            x = block(x)
        return x

    def encode(
        self,
        x: torch.Tensor,
        level: torch.Tensor | int | None = None,
        ids_keep: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """`(B, C, H, W)` -> tokens `(B, prefix + L, D)` after the norm; level `(B,)` or one number."""
        return self.norm(self._tokens(x, level, ids_keep))

    def decode(self, latent: torch.Tensor, ids_restore: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens -> predicted patches `(B, L, P*P*C)`."""
        x = self.decoder_embed(latent)
        prefix, patches = x[:, : self.decoder_prefix], x[:, self.prefix :]
        if ids_restore is not None:
            hidden = self.mask_token.expand(x.shape[0], self.num_patches - patches.shape[1], -1)
            patches = torch.cat([patches, hidden], 1)
            patches = patches.gather(1, ids_restore[..., None].expand_as(patches))
        x = torch.cat([prefix, patches], 1) + self.decoder_pos_embed
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x))[:, self.decoder_prefix :]

    def forward(
        self,
        x: torch.Tensor,
        level: torch.Tensor | int | None = None,
        mask_ratio: float = 0.75,
        noise: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicted patches `(B, L, P*P*C)` and the mask `(B, L)`, 1 where hidden; noise `(B, L)` chooses."""
        B, L = x.shape[0], self.num_patches
        if mask_ratio == 0:
            return self.decode(self.encode(x, level)), torch.zeros(B, L)
        noise = torch.rand(B, L) if noise is None else noise
        order = noise.argsort(dim=1, stable=True)
        restore = order.argsort(dim=1, stable=True)
        keep = int(L * (1 - mask_ratio))
        mask = (restore >= keep).float()
        return self.decode(self.encode(x, level, order[:, :keep]), restore), mask

    @torch.no_grad()
    def search(self, image: torch.Tensor, step: int = 2, high_pass: float = 0.0) -> tuple[int, dict[int, float]]:
        """Optimal blurriness search: the level whose blur the network undoes best, and every error.

        A fine-tuned network searches with the pre-trained one beside it.

        high_pass: sigma in pixels of the input; only what a blur of it removes from the error counts. 0: all of it.
        """
        if self.searcher:
            return self.searcher[0].search(image, step, high_pass)
        if not hasattr(self, "decoder_pred"):
            raise ValueError(f"a search needs the pre-trained network, {' and '.join(SEARCHER)} beside the weights")
        goal = self.patchify(self.view(image, 0))
        if self.config["norm_pix_loss"]:
            mean, var = goal.mean(-1, keepdim=True), goal.var(-1, keepdim=True)
            goal = (goal - mean) / (var + EPS).sqrt()
        errors = {}
        for level in range(1, len(self.sigmas) + 1, step):
            pred, _ = self(self.view(image, level), level, mask_ratio=0)
            error = pred - goal
            if high_pass:
                picture = self.unpatchify(error)[0]
                error = picture - gaussian_blur(picture, high_pass, "opencv_float")
            errors[level] = float(error.square().mean())
        return min(errors, key=lambda level: errors[level]), errors

    def features(self, x: torch.Tensor, level: torch.Tensor | int | None = None) -> torch.Tensor:
        """The input of the head of a fine-tuned network `(B, D)`."""
        x = self._tokens(x, level)
        if self.config["pool"] == "mean":
            return self.fc_norm(x[:, self.prefix :].mean(1))
        return self.norm(x[:, 0])

    def classify(self, x: torch.Tensor, level: torch.Tensor | int | None = None) -> torch.Tensor:
        """Logits `(B, classes)` of a fine-tuned network."""
        return self.head(self.features(x, level))

    @torch.no_grad()
    def predict(self, image: torch.Tensor) -> torch.Tensor:
        """Class probabilities `(classes,)` of one image; its blur level is chosen by the run's setting."""
        kind, value = self.config["setting"]
        level = None
        if kind == "search":
            level, _ = self.search(image, int(value), self.config.get("high_pass", 0.0))
        elif kind == "fixed":
            level = min(range(len(self.sigmas)), key=lambda i: abs(self.sigmas[i] - value)) + 1
        elif kind == "none":
            level = 1
        elif kind != "":
            raise ValueError(f"the run's setting '{kind}' does not say how a new image is blurred")
        return self.classify(self.view(image, level), level).softmax(1)[0]
