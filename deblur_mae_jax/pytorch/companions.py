"""The files that a format wants beside its weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from deblur_mae_jax import workdir
from deblur_mae_jax.pretrained import Pretrained
from deblur_mae_jax.pytorch import torch_side, volume_exports


def write(
    place: Path,
    trained: Pretrained,
    format: str,
    network: dict[str, Any],
    opens: dict[str, Any],
    weights: str,
) -> None:
    """`config.json` and its like; for formats that need one the model file too. weights: the name of their file."""
    if format == "d2mae":
        workdir.write_json(place / "config.json", network)
        shutil.copyfile(torch_side.MODELING, place / torch_side.MODELING.name)
    if format in volume_exports.FORMATS:
        workdir.write_json(place / "config.json", network | {"weights": weights})
        shutil.copyfile(torch_side.MODELING_SWIN, place / torch_side.MODELING_SWIN.name)
    if format == "hf":
        workdir.write_json(place / "config.json", _hf_config(trained, network, opens["class"]))
        workdir.write_json(place / "preprocessor_config.json", _hf_preprocessor(network))
    if format == "timm":
        size, arguments = network["image_size"], dict(opens["arguments"])
        labels = {"label_names": trained.classes} if trained.classes else {}
        config = {
            "architecture": opens["model"],
            "num_classes": arguments.pop("num_classes"),
            "global_pool": arguments["global_pool"],
            "num_features": network["embed_dim"],
            "model_args": arguments,
            **labels,
            "pretrained_cfg": {
                "input_size": [network["in_chans"], size, size],
                "fixed_input_size": True,
                "interpolation": "bicubic",
                "crop_pct": size / network["resize_to"],
                "crop_mode": "center",
                "mean": network["mean"],
                "std": network["std"],
                "num_classes": opens["arguments"]["num_classes"],
                "first_conv": "patch_embed.proj",
                "classifier": "head",
            },
        }
        workdir.write_json(place / "config.json", config)


def _hf_config(trained: Pretrained, network: dict[str, Any], name: str) -> dict[str, Any]:
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
            "mask_ratio": float(trained.config.task.mask_ratio),
            "norm_pix_loss": network["norm_pix_loss"],
        }
    labels = {
        "id2label": {str(i): name for i, name in enumerate(trained.classes)},
        "label2id": {name: i for i, name in enumerate(trained.classes)},
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


def _hf_preprocessor(network: dict[str, Any]) -> dict[str, Any]:
    """For `ViTImageProcessor`, which squeezes the image instead of cropping its centre: stated in the card."""
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
