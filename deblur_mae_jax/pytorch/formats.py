"""State dicts of other code: names and shapes of MAE, timm and Hugging Face; NumPy only.

Ours are MAE's names (`names.py`), with D2MAE's `blur_token` and `level_embed` beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from deblur_mae_jax.errors import UserError

State = dict[str, np.ndarray]
FORMATS = ("mae", "timm", "hf", "d2mae")

# Ours and Hugging Face's, of one block and of the rest; the classic names, which every version reads.
_HF_BLOCK = {
    "norm1": "layernorm_before",
    "attn.proj": "attention.output.dense",
    "norm2": "layernorm_after",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_HF_QKV = ("query", "key", "value")
_HF_ENCODER = {
    "cls_token": "embeddings.cls_token",
    "pos_embed": "embeddings.position_embeddings",
    "patch_embed.proj": "embeddings.patch_embeddings.projection",
    "norm": "layernorm",
    "fc_norm": "pooler.layernorm",
}
_HF_DECODER = {
    "mask_token": "decoder.mask_token",
    "decoder_pos_embed": "decoder.decoder_pos_embed",
    "decoder_embed": "decoder.decoder_embed",
    "decoder_norm": "decoder.decoder_norm",
    "decoder_pred": "decoder.decoder_pred",
}
# Names that newer versions keep in memory, or write, instead of the classic ones.
_HF_NEWER = (
    (r"^decoder\.decoder_encoder\.layer\.", "decoder.decoder_layers."),
    (r"^((?:vit|beit)\.)layers\.", r"\1encoder.layer."),
    (r"\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)
_BLOCK = re.compile(r"^(decoder_)?blocks\.(\d+)\.(.+)\.(weight|bias)$")
_HF_LAYER = re.compile(
    r"^(?:vit|beit)\.encoder\.layer\.(\d+)\.(.+)\.(weight|bias)$"
    r"|^decoder\.decoder_layers\.(\d+)\.(.+)\.(weight|bias)$"
)
# Every name a plain ViT, with or without MAE's decoder, can have.
_KNOWN = re.compile(
    r"^(cls_token|pos_embed|mask_token|decoder_pos_embed|blur_token|level_embed\..+"
    r"|(patch_embed\.proj|norm|fc_norm|head|head\.1|decoder_embed|decoder_norm|decoder_pred)\.(weight|bias)"
    r"|head\.0\.(running_mean|running_var|num_batches_tracked)"
    r"|(decoder_)?blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias))$"
)
DECODER = re.compile(r"^(decoder_|mask_token)")


def fold_probe(state: State, epsilon: float = 1e-6) -> State:
    """A linear probe's BatchNorm folded into its linear layer: `head.0` and `head.1` become `head`."""
    if "head.0.running_mean" not in state:
        return state
    rest = {k: v for k, v in state.items() if not k.startswith("head.")}
    scale = 1 / np.sqrt(state["head.0.running_var"].astype(np.float64) + epsilon)
    weight = state["head.1.weight"] * scale
    bias = state["head.1.bias"] - weight @ state["head.0.running_mean"]
    return rest | {
        "head.weight": weight.astype(np.float32),
        "head.bias": bias.astype(np.float32),
    }


def to_timm(state: State) -> State:
    """Encoder and head for timm's `VisionTransformer`; the decoder has no place there."""
    return {k: v for k, v in fold_probe(state).items() if not DECODER.match(k)}


def to_hf(state: State) -> State:
    """For `ViTMAEForPreTraining`, `ViTForImageClassification` (cls token) or, with the mean of the patches
    pooled, `BeitForImageClassification`, which has no bias of the keys: it changes no attention."""
    state = fold_probe(state)
    beit = "fc_norm.weight" in state
    encoder = "beit" if beit else "vit"
    out: State = {}
    for name, value in state.items():
        block = _BLOCK.match(name)
        if block:
            decoder, number, part, leaf = block.groups()
            layer = "decoder.decoder_layers" if decoder else f"{encoder}.encoder.layer"
            if part == "attn.qkv":
                for which, third in zip(_HF_QKV, np.split(value, 3), strict=True):
                    if not (beit and which == "key" and leaf == "bias"):
                        out[f"{layer}.{number}.attention.attention.{which}.{leaf}"] = third
            else:
                out[f"{layer}.{number}.{_HF_BLOCK[part]}.{leaf}"] = value
            continue
        stem, _, leaf = (
            name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
        )
        suffix = f".{leaf}" if leaf else ""
        if stem in _HF_DECODER:
            out[_HF_DECODER[stem] + suffix] = value
        elif stem == "head":
            out["classifier" + suffix] = value
        else:
            out[f"{encoder}.{_HF_ENCODER[stem]}{suffix}"] = value
    return out


def from_hf(state: State) -> State:
    """Hugging Face's names, of any version, to ours; queries, keys and values joined."""
    encoder = {
        f"{net}.{theirs}": ours for net in ("vit", "beit") for ours, theirs in _HF_ENCODER.items()
    }
    rest = encoder | {theirs: ours for ours, theirs in _HF_DECODER.items()} | {"classifier": "head"}
    block = {theirs: ours for ours, theirs in _HF_BLOCK.items()}
    out: State = {}
    qkv: dict[str, State] = {}
    for name, value in state.items():
        if name.startswith(("embeddings.", "encoder.layer.", "layers.", "layernorm.")):
            name = f"vit.{name}"  # a bare ViTModel
        for pattern, classic in _HF_NEWER:
            name = re.sub(pattern, classic, name)
        layer = _HF_LAYER.match(name)
        if layer:
            number, part, leaf = (g for g in layer.groups() if g is not None)
            prefix = f"{'decoder_' if name.startswith('decoder.') else ''}blocks.{number}"
            which = part.removeprefix("attention.attention.")
            if which in _HF_QKV:
                qkv.setdefault(f"{prefix}.attn.qkv.{leaf}", {})[which] = value
            else:
                out[f"{prefix}.{block.get(part, part)}.{leaf}"] = value
            continue
        leaf = name.rpartition(".")[2]
        stem = name[: -len(leaf) - 1] if leaf in ("weight", "bias") else name
        if stem.startswith(("vit.pooler.dense", "pooler.dense")):
            continue  # a layer over the cls token that classifiers do not use
        out[rest[stem] + name[len(stem) :] if stem in rest else name] = value
    for name, parts in qkv.items():
        if "key" not in parts and "query" in parts:  # BEiT has no bias of the keys
            parts["key"] = np.zeros_like(parts["query"])
        if set(parts) != set(_HF_QKV):
            raise UserError(f"'{name}': of query, key and value it holds only {sorted(parts)}")
        out[name] = np.concatenate([parts[which] for which in _HF_QKV])
    return out


def recognise(names: Iterable[str]) -> str:
    """The format a state dict of these names is in. Raises `UserError`."""
    names = list(names)
    has = lambda *starts: any(n.startswith(starts) for n in names)
    if has("vit.embeddings.", "beit.embeddings.", "embeddings.patch_embeddings."):
        return "hf"
    if has("patch_embed1."):
        raise UserError("it is a ConvMAE, which this library does not have. Choices: ViT networks")
    if has("patch_embed.proj.") and has("blocks.0.attn.qkv."):
        if has("blur_token", "level_embed."):
            return "d2mae"
        return "mae" if has("decoder_blocks.", "fc_norm") and not has("head.weight") else "timm"
    shown = ", ".join(names[:4]) or "nothing"
    raise UserError(
        f"it holds no network that is known here; its first names are {shown}. Choices: MAE, DeblurringMIM, timm "
        "or Hugging Face ViT, Hugging Face ViTMAE, or an export of this library"
    )


def to_ours(state: State) -> tuple[State, str]:
    """(state dict under MAE's names, the format it was in). Raises `UserError`."""
    kind = recognise(state)
    state = from_hf(state) if kind == "hf" else dict(state)
    state.pop("head.0.num_batches_tracked", None)
    strange = sorted(name for name in state if not _KNOWN.match(name))
    if strange:
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        raise UserError(f"it is not a plain ViT: it also holds {', '.join(strange[:5])}{more}")
    return state, kind
