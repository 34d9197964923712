"""timm's `ResNet`, `ConvNeXt` and `SwinTransformer`, and the same networks under the names of other code.

Also read: ResNets of torchvision, whose names are timm's; ConvNeXt of Facebook's code and of torchvision; Swin of
Microsoft's code, of timm before 0.9, and of torchvision.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax import config as fields
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import convnext, resnet, swin2d
from deblur_mae_jax.weight_formats import timm as timm_format
from deblur_mae_jax.weight_formats import torch_calls, vit
from deblur_mae_jax.weight_formats.contract import Converted, Inferred, Opened, State, Weights

NAME = "timm"
TITLE = "timm"
MODELS = ("resnet", "convnext", "swin2d", "siamese_resnet")
NEEDS = ("torch", "timm")
snippet: Callable[[dict[str, Any]], list[str]] = timm_format.snippet
# A name that only networks of this kind have, in timm's code and in others.
_KNOWN_BY = {
    "resnet": ("layer1.0.conv3.weight",),
    "convnext": ("stages.0.blocks.0.conv_dw.weight", "stages.0.0.dwconv.weight", "features.1.0.layer_scale"),
    "swin2d": ("layers.0.blocks.0.attn.relative_position_bias_table", "features.1.0.attn.relative_position_bias_table"),
}
_HEADS = {"resnet": "fc", "convnext": "head.fc", "swin2d": "head.fc"}
_FIRST = {"resnet": "conv1", "convnext": "stem.0", "swin2d": "patch_embed.proj"}
# timm's names of the sizes, and the arguments that set others.
_TIMM = {"resnet": "resnet{}", "convnext": "convnext_{}", "swin2d": "swin_{}_patch4_window7_224"}
_WORDS = {"T": "tiny", "S": "small", "B": "base", "L": "large"}
_VARIANTS = {"resnet": resnet.VARIANTS, "convnext": convnext.VARIANTS, "swin2d": swin2d.VARIANTS}
_CONSTANTS = re.compile(r"(num_batches_tracked|relative_position_index|attn_mask)$")
# Names of Facebook's code, as regular expressions, and timm's.
_FACEBOOK = (
    (r"downsample_layers\.0\.(\d)\.", r"stem.\1."), (r"downsample_layers\.(\d)\.(\d)\.", r"stages.\1.downsample.\2."),
    (r"stages\.(\d)\.(\d+)\.dwconv\.", r"stages.\1.blocks.\2.conv_dw."),
    (r"stages\.(\d)\.(\d+)\.pwconv([12])\.", r"stages.\1.blocks.\2.mlp.fc\3."),
    (r"stages\.(\d)\.(\d+)\.(norm|gamma)", r"stages.\1.blocks.\2.\3"), (r"norm\.", "head.norm."),
    (r"head\.(weight|bias)", r"head.fc.\1"),
)  # fmt: skip


def _network(names: Any) -> str:
    """The network that has these names, "" for none of these."""
    return next((network for network, known in _KNOWN_BY.items() if any(name in names for name in known)), "")


def matches(names: set[str]) -> bool:
    """Whether a name occurs that only one of these networks has."""
    return bool(_network(names))


def to_ours(state: State) -> State:
    """The names of timm 0.9 and later, without constants; a head without classes where there is none."""
    network = _network(state)
    state = {name: value for name, value in state.items() if not _CONSTANTS.search(name)}
    if any(name.startswith("features.") for name in state):
        state = _of_torchvision(state, network)
    elif network == "convnext" and "stages.0.0.dwconv.weight" in state:
        state = {_renamed(name, _FACEBOOK): value for name, value in state.items()}
    elif network == "swin2d":
        if any(name.startswith("layers.0.downsample.") for name in state):  # at the end of a stage
            later = lambda found: f"layers.{int(found[1]) + 1}.downsample."
            state = {re.sub(r"^layers\.(\d)\.downsample\.", later, name): value for name, value in state.items()}
        state = {re.sub(r"^head\.(weight|bias)$", r"head.fc.\1", name): value for name, value in state.items()}
    head = _HEADS[network]
    if f"{head}.weight" not in state:
        width = _width_of_features(state, network)
        state |= {f"{head}.weight": np.zeros((0, width), np.float32), f"{head}.bias": np.zeros(0, np.float32)}
    return state


def _renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, new in rules:
        renamed, count = re.subn(rf"^{pattern}", new, name)
        if count:
            return renamed
    return name


def _of_torchvision(state: State, network: str) -> State:
    """Names of torchvision, in which `features` holds the stem, and stages and halvings in turn."""
    inner = {
        "convnext": {"block.0": "conv_dw", "block.2": "norm", "block.3": "mlp.fc1", "block.5": "mlp.fc2",
                     "layer_scale": "gamma"},
        "swin2d": {"mlp.0": "mlp.fc1", "mlp.3": "mlp.fc2"},
    }[network]  # fmt: skip
    stages = "stages" if network == "convnext" else "layers"
    first = {
        "convnext": {"0.0": "stem.0", "0.1": "stem.1"},
        "swin2d": {"0.0": "patch_embed.proj", "0.2": "patch_embed.norm"},
    }
    last = {"classifier.0": "head.norm", "classifier.2": "head.fc", "head": "head.fc"}
    out = {}
    for name, value in state.items():
        found = re.match(r"features\.(\d)\.(\d+|reduction|norm)\.?(.*)$", name)
        if found is None:
            stem, _, leaf = name.rpartition(".")
            out[f"{last.get(stem, stem)}.{leaf}"] = value
            continue
        part, second, rest = int(found[1]), found[2], found[3]
        if part == 0:
            out[f"{first[network][f'0.{second}']}.{rest}"] = value
        elif part % 2:
            stem, _, leaf = rest.rpartition(".")
            inside = inner.get(stem, stem) if stem else inner.get(leaf, leaf)
            value = value.reshape(-1) if rest == "layer_scale" else value
            out[f"{stages}.{part // 2}.blocks.{second}.{f'{inside}.{leaf}' if stem else inside}"] = value
        else:
            out[f"{stages}.{part // 2}.downsample.{f'{second}.{rest}'}"] = value
    return out


def _width_of_features(state: State, network: str) -> int:
    last = {"resnet": r"layer4\.0\.bn3\.weight", "convnext": r"head\.norm\.weight", "swin2d": r"norm\.weight"}[network]
    found = [value for name, value in state.items() if re.fullmatch(last, name)]
    if not found:
        raise UserError("it holds only a part of a network, or one without its last stage")
    return int(found[0].shape[0])


def infer(weights: Weights) -> Inferred:
    """The config, from the header or from the shapes, with notes on what was assumed. Raises `UserError`."""
    saved = fields.upgrade(json.loads(weights.header["config"])) if "config" in weights.header else None
    if saved is not None and saved["model.name"] != "siamese_resnet":
        return Inferred(saved, json.loads(weights.header.get("classes", "[]")), [])
    values, classes, notes = _from_shapes(weights)
    if saved is not None:  # an exported encoder without its projector
        same = {k: v for k, v in saved.items() if k in values and k not in ("task.name", "model.name", "optim.name")}
        return Inferred(values | same, [], [])
    return Inferred(values, classes, notes)


def _from_shapes(weights: Weights) -> tuple[dict[str, Any], list[str], list[str]]:
    state, notes = weights.state, list[str]()
    network = _network(state)
    kernel = state[f"{_FIRST[network]}.weight"]
    if kernel.ndim != 4 or kernel.shape[1] not in (1, 3):
        raise UserError(f"'{_FIRST[network]}.weight' has the shape {kernel.shape}; expected 1 or 3 channels")
    values = fields.flat(fields.backbones(network))
    values |= {k: v for k, v in fields.without_source(2).items() if k in values and values[k] is None}
    given = (weights.config.get("pretrained_cfg") or {}).get("input_size")
    usual = 224
    if network == "swin2d":
        table = state["layers.0.blocks.0.attn.relative_position_bias_table"]
        values["model.window"] = (round(len(table) ** 0.5) + 1) // 2
        usual = 32 * values["model.window"]  # the last stage is one window
    values |= {
        "model.width": int(kernel.shape[0]), "model.depths": _depths(state, network), "model.in_chans": kernel.shape[1],
        "image_size": int(given[-1]) if given else usual, "model.drop_path": 0.0,
    }  # fmt: skip
    if not given:
        notes.append(f"the file does not record the size of its images; we assume {usual} pixels")
    values |= vit.normalisation(weights.config, kernel.shape[1], notes)
    return values, vit.classes_of(state.get(f"{_HEADS[network]}.weight"), weights.config), notes


def _depths(state: State, network: str) -> tuple[int, ...]:
    """The number of blocks of each stage."""
    pattern = {"resnet": r"layer([1-4])\.(\d+)\.", "convnext": r"stages\.(\d)\.blocks\.(\d+)\.",
               "swin2d": r"layers\.(\d)\.blocks\.(\d+)\."}[network]  # fmt: skip
    places = {(int(found[1]), int(found[2])) for name in state if (found := re.match(pattern, name))}
    stages = sorted({stage for stage, _ in places})
    out = tuple(sum(stage == one for stage, _ in places) for one in stages)
    if len(out) != 4 or {(s, b) for s, depth in zip(stages, out, strict=True) for b in range(depth)} != places:
        raise UserError(f"it does not hold four whole stages, but blocks {sorted(places)[:6]}")
    return out


def from_ours(network: dict[str, Any], state: State) -> Converted:
    """Our names are timm's."""
    if network.get("kind") == "contrast":
        network = network | {"model": "resnet"}
        return Converted(from_ours(network | {"kind": ""}, vit.encoder_of(state, "fc")).state, [vit.NO_PROJECTOR])
    stem = resnet.VARIANTS["50"][0]
    if network["model"] == "resnet" and network["width"] != stem:
        raise UserError(f"--format={NAME}: its ResNet begins with {stem} channels, this one with {network['width']}")
    return Converted(dict(state))


def opens_with(network: dict[str, Any]) -> dict[str, Any]:
    """`timm.create_model` with a model's name and arguments."""
    if network.get("kind") == "contrast":
        network = network | {"model": "resnet", "num_classes": 0}
    kind, sizes = network["model"], (network["width"], tuple(network["depths"]))
    known = {size: name for name, size in _VARIANTS[kind].items()}
    variant = known.get(sizes, next(iter(_VARIANTS[kind])))
    arguments: dict[str, Any] = {"in_chans": network["in_chans"], "num_classes": network["num_classes"]}
    if kind == "swin2d":
        arguments |= {"img_size": network["image_size"], "window_size": network["window"]}
    if sizes not in known:
        widths = [sizes[0] << stage for stage in range(4)]
        heads = [max(1, width // swin2d.HEAD_WIDTH) for width in widths]
        arguments |= {
            "resnet": {"layers": list(sizes[1])},
            "convnext": {"depths": list(sizes[1]), "dims": widths},
            "swin2d": {"depths": list(sizes[1]), "embed_dim": sizes[0], "num_heads": heads},
        }[kind]
    name = _TIMM[kind].format(_WORDS.get(variant, variant))
    return {"library": "timm", "model": name, "arguments": arguments}


def companions(folder: Path, network: dict[str, Any], opens: dict[str, Any], weights: str) -> None:
    """timm's `config.json`."""
    kind = network["model"].removeprefix("siamese_")
    features = network["width"] * 8 * (4 if kind == "resnet" else 1)
    timm_format.write_config(folder, network, opens, (features, _FIRST[kind], _HEADS[kind]))


def open(file: Path, certificate: dict[str, Any]) -> Opened:
    """Open it with timm; every name and shape must match."""
    import timm

    opens = certificate["opens_with"]
    model = timm.create_model(opens["model"], pretrained=False, **opens["arguments"])
    model.load_state_dict(torch_calls.state_of(file), strict=True)
    model.eval()
    functions: dict[str, Any] = {
        "features": lambda x, level: model.forward_head(model.forward_features(x), pre_logits=True),
        "logits": lambda x, level: model(x),
    }
    if not opens["arguments"]["num_classes"]:
        del functions["logits"]
    return Opened(model, **torch_calls.calls(**functions))
