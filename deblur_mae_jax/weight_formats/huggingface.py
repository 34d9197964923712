"""Hugging Face transformers: `ViTMAEForPreTraining`, `ViTForImageClassification`, `BeitForImageClassification`."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax import sides
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.weight_formats import torch_calls, vit
from deblur_mae_jax.weight_formats.contract import Converted, Opened, State
from deblur_mae_jax.workdir import run_folder

NAME = "hf"
TITLE = "Hugging Face transformers"
MODELS = vit.MODELS
NEEDS = ("torch", "transformers")
infer: Callable[..., Any] = vit.infer

# Our names and Hugging Face's, for one block and for the rest. These are the classic names, which every version reads.
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


def matches(names: set[str]) -> bool:
    """A ViT, BEiT or ViTMAE, or a bare encoder."""
    starts = ("vit.embeddings.", "beit.embeddings.", "embeddings.patch_embeddings.")
    return any(name.startswith(starts) for name in names)


def from_ours(network: dict[str, Any], state: State) -> Converted:
    """Split queries, keys and values; a classifier that pools the mean becomes a BEiT."""
    vit.without_levels(network, NAME)
    if not isinstance(network["image_size"], int):
        raise UserError(
            f"--format={NAME}: Hugging Face's masked autoencoder takes square images, and this network takes "
            f"{sides.written(network['image_size'])} pixels. Choices: mae, timm, d2mae"
        )
    folded = vit.fold_probe(state)
    changed = [] if folded is state else [vit.PROBE_FOLDED]
    if network["task"] == "classify":
        if network["pool"] == "mean":
            changed.append(
                "Hugging Face's ViT classifies from the cls token; this network pools the mean of the patches, "
                "so it is written as a BEiT without its extras, which computes the same. BEiT has no bias of the "
                "attention keys, which changes no result"
            )
        if not network["num_classes"]:
            raise UserError("--format=hf: an encoder without head or decoder. Choices: mae, timm, d2mae")
    return Converted(_to_hf(folded), [], changed)


def _to_hf(state: State) -> State:
    """For `ViTMAEForPreTraining`, `ViTForImageClassification` (cls token) or, with the mean of the patches
    pooled, `BeitForImageClassification`, which has no bias of the keys: it changes no attention."""
    beit = "fc_norm.weight" in state
    encoder = "beit" if beit else "vit"
    out: State = {}
    for name, value in state.items():
        block = _BLOCK.match(name)
        if block:
            decoder, number, layer_name, leaf = block.groups()
            layer = "decoder.decoder_layers" if decoder else f"{encoder}.encoder.layer"
            if layer_name == "attn.qkv":
                for which, third in zip(_HF_QKV, np.split(value, 3), strict=True):
                    if not (beit and which == "key" and leaf == "bias"):
                        out[f"{layer}.{number}.attention.attention.{which}.{leaf}"] = third
            else:
                out[f"{layer}.{number}.{_HF_BLOCK[layer_name]}.{leaf}"] = value
            continue
        stem, _, leaf = name.rpartition(".") if name.endswith((".weight", ".bias")) else (name, "", "")
        suffix = f".{leaf}" if leaf else ""
        if stem in _HF_DECODER:
            out[_HF_DECODER[stem] + suffix] = value
        elif stem == "head":
            out["classifier" + suffix] = value
        else:
            out[f"{encoder}.{_HF_ENCODER[stem]}{suffix}"] = value
    return out


def to_ours(state: State) -> State:
    """Rename from any version of Hugging Face to our names, and join queries, keys and values."""
    encoder = {f"{net}.{theirs}": ours for net in ("vit", "beit") for ours, theirs in _HF_ENCODER.items()}
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
            number, layer_name, leaf = (g for g in layer.groups() if g is not None)
            prefix = f"{'decoder_' if name.startswith('decoder.') else ''}blocks.{number}"
            which = layer_name.removeprefix("attention.attention.")
            if which in _HF_QKV:
                qkv.setdefault(f"{prefix}.attn.qkv.{leaf}", {})[which] = value
            else:
                out[f"{prefix}.{block.get(layer_name, layer_name)}.{leaf}"] = value
            continue
        leaf = name.rpartition(".")[2]
        stem = name[: -len(leaf) - 1] if leaf in ("weight", "bias") else name
        if stem.startswith(("vit.pooler.dense", "pooler.dense")):
            continue  # a layer over the cls token that classifiers do not use
        out[rest[stem] + name[len(stem) :] if stem in rest else name] = value
    for name, weights in qkv.items():
        if "key" not in weights and "query" in weights:  # BEiT has no bias of the keys
            weights["key"] = np.zeros_like(weights["query"])
        if set(weights) != set(_HF_QKV):
            raise UserError(f"'{name}': of query, key and value it holds only {sorted(weights)}")
        out[name] = np.concatenate([weights[which] for which in _HF_QKV])
    return vit.checked(out)


def opens_with(network: dict[str, Any]) -> dict[str, Any]:
    """The class of transformers that opens the network."""
    if network["task"] != "classify":
        return {"library": "transformers", "class": "ViTMAEForPreTraining"}
    kind = "Beit" if network["pool"] == "mean" else "ViT"
    return {"library": "transformers", "class": f"{kind}ForImageClassification"}


# For the model card.
CAUTIONS = (
    "`preprocessor_config.json` does less: `ViTImageProcessor` resizes the whole image to a square, does not crop it, "
    "and does not degrade it. Prepare images by the steps above for the results of the run.",
    "`transformers.pipeline` converts images to RGB: for it, export a gray network with `--in_chans=3`.",
)


def companions(folder: Path, network: dict[str, Any], opens: dict[str, Any], weights: str) -> None:
    """`config.json` and `preprocessor_config.json`."""
    run_folder.write_json(folder / "config.json", _config(network, opens["class"]))
    run_folder.write_json(folder / "preprocessor_config.json", _preprocessor(network))


def snippet(certificate: dict[str, Any]) -> list[str]:
    """`from_pretrained`."""
    name = certificate["opens_with"]["class"]
    return [f"from transformers import {name}", f'model = {name}.from_pretrained(".")']


def _config(network: dict[str, Any], name: str) -> dict[str, Any]:
    width = network["embed_dim"]
    config = {
        "architectures": [name],
        "model_type": {"ViTM": "vit_mae", "ViTF": "vit", "Beit": "beit"}[name[:4]],
        "hidden_size": width,
        "num_hidden_layers": network["depth"],
        "num_attention_heads": network["num_heads"],
        "intermediate_size": int(width * network["mlp_ratio"]),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": 1e-6,
        "image_size": network["image_size"],
        "patch_size": network["patch_size"],
        "num_channels": network["in_chans"],
        "qkv_bias": True,
    }
    if name == "ViTMAEForPreTraining":
        inner = network["decoder_embed_dim"]
        return config | {
            "decoder_hidden_size": inner,
            "decoder_num_hidden_layers": network["decoder_depth"],
            "decoder_num_attention_heads": network["decoder_num_heads"],
            "decoder_intermediate_size": int(inner * network["mlp_ratio"]),
            "mask_ratio": network["mask_ratio"],
            "norm_pix_loss": network["norm_pix_loss"],
        }
    labels: dict[str, Any] = {
        "id2label": {str(i): name for i, name in enumerate(network["classes"])},
        "label2id": {name: i for i, name in enumerate(network["classes"])},
    }
    if name.startswith("Beit"):
        labels |= {
            "use_absolute_position_embeddings": True,
            "use_relative_position_bias": False,
            "use_shared_relative_position_bias": False,
            "use_mask_token": False,
            "use_mean_pooling": True,
            "layer_scale_init_value": 0.0,
        }
    return config | labels


def _preprocessor(network: dict[str, Any]) -> dict[str, Any]:
    """The config of `ViTImageProcessor`, which resizes to a square without cropping (`CAUTIONS`)."""
    size = network["image_size"]
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": network["mean"],
        "image_std": network["std"],
    }


def open(file: Path, certificate: dict[str, Any]) -> Opened:
    """Open it with `from_pretrained`; every name and shape must match."""
    import torch
    import transformers

    folder, name = file.parent, certificate["opens_with"]["class"]

    transformers.utils.logging.disable_progress_bar()
    level = logging.getLogger("transformers").level
    transformers.utils.logging.set_verbosity_error()
    try:
        model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    finally:
        logging.getLogger("transformers").setLevel(level)
    wrong = {k: sorted(v) for k, v in info.items() if v}
    if wrong:
        raise UserError(f"'{folder}' does not fit {name}: {wrong}")
    model.eval()
    layers = {ours: module for n, module in model.named_modules() if (ours := _layer(n))}
    if name != "ViTMAEForPreTraining":

        def features(x: Any, level: Any) -> Any:
            if name.startswith("Beit"):
                return model.beit(x).pooler_output
            return model.vit(x).last_hidden_state[:, 0]

        functions = {"features": features, "logits": lambda x, level: model(x).logits}
        return Opened(model, layers=layers, **torch_calls.calls(**functions))

    def in_order(x: Any) -> Any:
        count = (model.config.image_size // model.config.patch_size) ** 2
        return torch.arange(count).expand(x.shape[0], -1).float()

    def tokens(x: Any, level: Any) -> Any:
        model.config.mask_ratio = 0.0
        return model.vit(x, noise=in_order(x)).last_hidden_state

    def reconstruct(x: Any, level: Any, ratio: float, noise: Any) -> Any:
        model.config.mask_ratio = ratio
        return model(x, noise=in_order(x) if noise is None else noise).logits

    return Opened(model, layers=layers, **torch_calls.calls(tokens=tokens, reconstruct=reconstruct))


def _layer(name: str) -> str:
    """MAE's name for a module of transformers; empty for modules that are never compared."""
    names = {"layernorm": "norm", "decoder.decoder_embed": "decoder_embed", "classifier": "head",
             "decoder.decoder_norm": "decoder_norm", "decoder.decoder_pred": "decoder_pred",
             "pooler.layernorm": "fc_norm"}  # fmt: skip
    inner = name.removeprefix("vit.").removeprefix("beit.")
    if inner in names:
        return names[inner]
    stem, _, number = inner.rpartition(".")
    if number.isdigit():
        if stem in ("layers", "encoder.layer"):
            return f"blocks.{number}"
        if stem == "decoder.decoder_layers":
            return f"decoder_blocks.{number}"
    return ""
