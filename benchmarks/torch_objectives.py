"""Training steps of the pre-training objectives in PyTorch, from timm's networks, for comparison with ours.

Plain, efficient implementations in float32: timm's ViT, ResNet and Swin, fused attention, gathered visible patches,
AdamW (LARS for SimCLR), an average of the parameters for the momentum copy. Images are in memory. ConvMAE is the
PyTorch file that an export brings.
"""

from __future__ import annotations

import copy
import itertools
import math

import timm
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Attention, Block
from timm.optim import Lars
from torch import nn

from benchmarks.swin_unetr_step import like_jax


def mlp(widths, last_norm=False):
    """Linear layers with BatchNorm and ReLU between them."""
    out = []
    for number, (before, after) in enumerate(itertools.pairwise(widths)):
        out.append(nn.Linear(before, after, bias=False))
        if number < len(widths) - 2:
            out += [nn.BatchNorm1d(after), nn.ReLU(inplace=True)]
        elif last_norm:
            out.append(nn.BatchNorm1d(after))
    return nn.Sequential(*out)


def vit(side, channels, **more):
    """timm's ViT-B without a classifier."""
    return timm.create_model("vit_base_patch16_224", img_size=side, in_chans=channels, num_classes=0, **more)


class MoCoV3(nn.Module):
    """A ViT, its projector and predictor, and their momentum copy."""

    def __init__(self, side, channels):
        super().__init__()
        self.base = nn.Sequential(vit(side, channels), mlp((768, 4096, 4096, 256), True))
        self.predictor = mlp((256, 4096, 256), True)
        self.base[0].patch_embed.requires_grad_(False)
        self.copy = copy.deepcopy(self.base).requires_grad_(False)

    def forward(self, first, second):
        """The loss of two views."""
        with torch.no_grad():
            for kept, moved in zip(self.copy.parameters(), self.base.parameters(), strict=True):
                kept.lerp_(moved, 0.01)
            keys = [self.copy(x) for x in (first, second)]
        queries = [self.predictor(self.base(x)) for x in (first, second)]
        return sum(self._contrast(q, k) for q, k in zip(queries, keys[::-1], strict=True))

    def _contrast(self, q, k):
        logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / 0.2
        return 0.4 * F.cross_entropy(logits, torch.arange(len(q), device=q.device))


class SimCLR(nn.Module):
    """A ResNet-50 and its projector."""

    def __init__(self, side, channels):
        super().__init__()
        self.encoder = timm.create_model("resnet50", in_chans=channels, num_classes=0)
        self.projector = mlp((2048, 2048, 2048, 128), True)

    def forward(self, first, second):
        """NT-Xent of two views."""
        z = F.normalize(self.projector(self.encoder(torch.cat([first, second]))), dim=1)
        B = len(first)
        logits = (z @ z.T / 0.1).fill_diagonal_(-1e9)
        return F.cross_entropy(logits, torch.arange(2 * B, device=z.device).roll(B))


def block_masks(count, side, ratio=0.6, size=32):
    """`(B, side / size, side / size)`, True for masked squares."""
    n = side // size
    order = torch.rand(count, n * n).argsort(1).argsort(1)
    return (order < math.ceil(ratio * n * n)).reshape(count, n, n)


class SimMIM(nn.Module):
    """An encoder that sees mask tokens, and one convolution that predicts all pixels."""

    def __init__(self, side, channels, kind="vit"):
        super().__init__()
        self.kind, self.side = kind, side
        if kind == "swin":
            self.encoder = timm.create_model(
                "swin_base_patch4_window7_224", img_size=side, window_size=6, in_chans=channels, num_classes=0,
                drop_path_rate=0.0,
            )  # fmt: skip
            width, self.stride, patch = 1024, 32, 4
        else:
            more = {"init_values": 0.1, "drop_path_rate": 0.1}
            if kind == "beit":
                self.encoder = timm.create_model(
                    "beit_base_patch16_224", img_size=side, in_chans=channels, num_classes=0,
                    use_rel_pos_bias=False, use_shared_rel_pos_bias=True, **more,
                )  # fmt: skip
            else:
                self.encoder = vit(side, channels, **more)
            width, self.stride, patch = 768, 16, 16
        self.patch = patch
        self.mask_token = nn.Parameter(torch.zeros(width if kind != "swin" else 128))
        self.decoder = nn.Conv2d(width, self.stride**2 * channels, 1)

    def forward(self, images):
        """L1 over the masked pixels."""
        mask = block_masks(len(images), self.side).to(images.device)
        places = mask.repeat_interleave(32 // self.patch, 1).repeat_interleave(32 // self.patch, 2)
        encoder = self.encoder
        x = encoder.patch_embed(images)
        if self.kind == "swin":
            x = torch.where(places[..., None], self.mask_token, x)
            x = encoder.norm(encoder.layers(x)).permute(0, 3, 1, 2)
        else:
            x = torch.where(places.flatten(1)[..., None], self.mask_token, x)
            if self.kind == "beit":
                x = torch.cat([encoder.cls_token.expand(len(x), -1, -1), x], 1)
                bias = encoder.rel_pos_bias()
                for block in encoder.blocks:
                    x = block(x, shared_rel_pos_bias=bias)
            else:
                x = encoder.blocks(encoder._pos_embed(x))
                x = encoder.norm(x)
            n = self.side // 16
            x = x[:, 1:].transpose(1, 2).reshape(len(x), -1, n, n)
        out = F.pixel_shuffle(self.decoder(x), self.stride)
        hidden = mask.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, None]
        return ((out - images).abs() * hidden).sum() / hidden.sum()


class ConvMAE(nn.Module):
    """The network of an export, and the loss of MAE."""

    def __init__(self, side, channels):
        super().__init__()
        from deblur_mae_jax.weight_formats import torch_calls

        network = {
            "kind": "reconstruct", "in_chans": channels, "stem_dims": (256, 384), "stem_depths": (2, 2),
            "embed_dim": 768, "mlp_ratio": 4.0, "image_size": side, "num_heads": 12, "depth": 11,
            "decoder_embed_dim": 512, "decoder_depth": 8, "decoder_num_heads": 16,
        }  # fmt: skip
        self.net = torch_calls.modeling(torch_calls.STANDALONE / "modeling_convmae.py").ConvMAE(network)

    def forward(self, images):
        """Squared error over the masked, normalised patches."""
        noise = torch.rand(len(images), self.net.num_patches, device=images.device)
        out = self.net(images, 0.75, noise)
        goal = F.unfold(images, 16, stride=16).transpose(1, 2)
        goal = (goal - goal.mean(2, keepdim=True)) / (goal.var(2, keepdim=True) + 1e-6).sqrt()
        hidden = noise.argsort(1).argsort(1) >= int(0.25 * noise.shape[1])
        return (((out - goal) ** 2).mean(2) * hidden).sum() / hidden.sum()


class Head(nn.Module):
    """DINO's head."""

    def __init__(self):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(768, 2048), nn.GELU(), nn.Linear(2048, 2048), nn.GELU(), nn.Linear(2048, 256)
        )
        self.last = nn.Parameter(0.02 * torch.randn(4096, 256))

    def forward(self, x):
        """Similarities to the prototypes."""
        return F.normalize(self.mlp(x), dim=-1) @ F.normalize(self.last, dim=-1).T


class DINOv2(nn.Module):
    """Student and teacher with two heads each; two large and eight small crops."""

    def __init__(self, side, channels):
        super().__init__()
        part = lambda: nn.ModuleDict(
            {"net": vit(side, channels, dynamic_img_size=True), "dino": Head(), "ibot": Head()}
        )
        self.student = part()
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.mask_token = nn.Parameter(torch.zeros(768))

    def _tokens(self, net, images, mask=None):
        x = net.patch_embed(images)  # (B, h, w, D) with dynamic sizes
        if mask is not None:
            x = torch.where(mask.reshape(*x.shape[:3], 1), self.mask_token, x)
        return net.norm(net.blocks(net._pos_embed(x)))

    @staticmethod
    def _balanced(scores, temperature=0.07):
        with torch.no_grad():
            q = (scores / temperature - (scores / temperature).max()).exp()
            q = q / q.sum()
            for _ in range(3):
                q = q / q.sum(0, keepdim=True) / q.shape[1]
                q = q / q.sum(1, keepdim=True) / q.shape[0]
            return q * q.shape[0]

    def forward(self, large, small):
        """The three terms; large `(2B, C, H, W)`, small `(8B, C, h, w)`."""
        B = len(large) // 2
        with torch.no_grad():
            pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
            for kept, moved in pairs:
                kept.lerp_(moved, 0.008)
            tokens = self._tokens(self.teacher["net"], large)
            goals = self._balanced(self.teacher["dino"](tokens[:, 0])).reshape(2, B, -1)
            patches = self.teacher["ibot"](tokens[:, 1:])
        mask = torch.rand(patches.shape[:2], device=large.device) < 0.15
        goal_of_patches = self._balanced(patches.flatten(0, 1)).reshape(patches.shape)
        tokens = self._tokens(self.student["net"], large, mask)
        cross = lambda scores, goal: -(goal * F.log_softmax(scores / 0.1, -1)).sum(-1)
        own = self.student["dino"](tokens[:, 0]).reshape(2, B, -1)
        local = self.student["dino"](self._tokens(self.student["net"], small)[:, 0]).reshape(8, B, -1)
        terms = [cross(own[1 - v], goals[v]) for v in range(2)] + [cross(x, g) for g in goals for x in local]
        total = sum(terms) / len(terms)
        each = cross(self.student["ibot"](tokens[:, 1:]), goal_of_patches)
        total = total.mean() + (each * mask).sum() / mask.sum().clamp(min=1)
        for view in tokens[:, 0].reshape(2, B, -1):
            z = F.normalize(view, dim=1)
            near = (z @ z.T - 2 * torch.eye(B, device=z.device)).max(1).values.clamp(-1, 1)
            total = total - 0.1 * ((2 - 2 * near).clamp(min=1e-8).sqrt() + 1e-8).log().mean()
        return total


class CrossBlock(nn.Module):
    """Cross-attention, self-attention, MLP."""

    def __init__(self, width=512, heads=16):
        super().__init__()
        self.heads = heads
        self.n0, self.n1, self.n2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.attn, self.mlp = Attention(width, heads, qkv_bias=True), Mlp(width, 4 * width)

    def forward(self, y, memory):
        """`(B, M, D)` sees `memory` `(B, N, D)`."""
        B, M, D = y.shape
        split = lambda x: x.reshape(B, -1, self.heads, D // self.heads).transpose(1, 2)
        k, v = self.kv(memory).chunk(2, -1)
        out = F.scaled_dot_product_attention(split(self.q(self.n0(y))), split(k), split(v))
        y = y + self.proj(out.transpose(1, 2).reshape(B, M, D))
        y = y + self.attn(self.n1(y))
        return y + self.mlp(self.n2(y))


class DiffMAE(nn.Module):
    """An encoder of the visible patches and a denoising decoder with links as in a U-Net."""

    def __init__(self, side, channels):
        super().__init__()
        self.side, self.pixels = side, 256 * channels
        self.proj, self.cls = nn.Linear(self.pixels, 768), nn.Parameter(torch.zeros(1, 1, 768))
        L = (side // 16) ** 2
        self.register_buffer("pos", torch.randn(1, L, 768))
        self.register_buffer("decoder_pos", torch.randn(1, L, 512))
        self.blocks = nn.ModuleList(Block(768, 12, 4, qkv_bias=True) for _ in range(12))
        self.norm = nn.LayerNorm(768, eps=1e-6)
        self.noisy, self.time = nn.Linear(self.pixels, 512), nn.Linear(512, 512)
        self.links = nn.ModuleList(nn.Sequential(nn.LayerNorm(768), nn.Linear(768, 512)) for _ in range(8))
        self.decoder = nn.ModuleList(CrossBlock() for _ in range(8))
        self.out = nn.Sequential(nn.LayerNorm(512, eps=1e-6), nn.Linear(512, self.pixels))

    def forward(self, images):
        """Squared error over the masked patches."""
        goal = F.unfold(images, 16, stride=16).transpose(1, 2)
        B, L, _ = goal.shape
        order = torch.rand(B, L, device=images.device).argsort(1)
        kept, hidden = order[:, : L // 4, None], order[:, L // 4 :, None]
        take = lambda x, index: x.expand(B, -1, -1).gather(1, index.expand(-1, -1, x.shape[2]))
        x = torch.cat([self.cls.expand(B, -1, -1), self.proj(take(goal, kept)) + take(self.pos, kept)], 1)
        states = []
        for block in self.blocks:
            x = block(x)
            states.append(x)
        states[-1] = self.norm(x)
        clean = take(goal, hidden)
        share = torch.rand(B, 1, 1, device=images.device)
        noisy = share.sqrt() * clean + (1 - share).sqrt() * torch.randn_like(clean)
        y = self.noisy(noisy) + take(self.decoder_pos, hidden) + self.time(share.expand(-1, -1, 512))
        for number, block in enumerate(self.decoder):
            y = block(y, self.links[number](states[11 - number]))
        return ((self.out(y) - clean) ** 2).mean()


def simmim_swin(side, channels):
    """SimMIM of a Swin-B."""
    return SimMIM(side, channels, "swin")


def simmim_beit(side, channels):
    """SimMIM of a BEiT-B."""
    return SimMIM(side, channels, "beit")


OBJECTIVES = {
    "moco_v3": MoCoV3, "simclr": SimCLR, "simmim": SimMIM, "simmim:beit": simmim_beit, "simmim_swin": simmim_swin,
    "convmae": ConvMAE, "dino_v2": DINOv2, "diffmae": DiffMAE,
}  # fmt: skip


def step(name, side, batch, arrays):
    """(one training step, facts). `arrays`: the images by the names of our losses, as NumPy."""
    like_jax()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tensor = lambda x: torch.from_numpy(x).movedim(-1, -3).contiguous().to(device)
    first = tensor(arrays["inputs"])
    model = OBJECTIVES[name](side, first.shape[1]).to(device).train()
    if name in ("moco_v3", "simclr"):
        inputs = [first, tensor(arrays["other_inputs"])]
    elif name == "dino_v2":
        inputs = [torch.cat([first, tensor(arrays["other_inputs"])]), tensor(arrays["local_inputs"]).flatten(0, 1)]
    else:
        inputs = [first]
    trained = [p for p in model.parameters() if p.requires_grad]
    if name == "simclr":
        optimizer = Lars(trained, lr=0.01, weight_decay=1e-6)
    else:
        optimizer = torch.optim.AdamW(trained, 1e-4, weight_decay=0.05, fused=device == "cuda")

    def run():
        loss = model(*inputs)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()
        assert torch.isfinite(loss), name

    peak = lambda: torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    return run, peak, {"parameters": sum(p.numel() for p in trained), "torch": torch.__version__}
