"""An export, opened in PyTorch by the library it is for; torch, timm and transformers are imported here only."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pytorch.files import EXTRA, need_torch

MODELING = Path(__file__).with_name("modeling_d2mae.py")
MODELING_SWIN = Path(__file__).with_name("modeling_swin.py")
CERTIFICATE = "certificate.json"
SEARCHER = ("searcher.safetensors", "searcher.json")  # as in `modeling_d2mae.py`
# What each format is opened with.
NEEDS = {"mae": ("torch",), "d2mae": ("torch",), "timm": ("torch", "timm"),
         "hf": ("torch", "transformers"), "monai": ("torch", "monai"), "dae": ("torch", "monai")}  # fmt: skip


@dataclasses.dataclass
class Opened:
    """A network in PyTorch. Functions of `(B, C, S, S)` arrays, and of levels `(B,)` or `None`; those that a
    format has no part for are `None`. layers: the modules under MAE's names."""

    module: Any
    tokens: Callable[..., np.ndarray] | None = None  # (x, level): all tokens after the norm
    reconstruct: Callable[..., np.ndarray] | None = None  # (x, level, mask_ratio, noise)
    features: Callable[..., np.ndarray] | None = None  # (x, level): what the head sees
    logits: Callable[..., np.ndarray] | None = None  # (x, level)
    layers: dict[str, Any] = dataclasses.field(default_factory=dict)
    volume: Callable[..., Any] | None = (
        None  # x -> (output, hidden states as the decoder gets them)
    )


def missing(kind: str) -> list[str]:
    """The packages that are needed to open this format and are not installed."""
    return [name for name in NEEDS[kind] if importlib.util.find_spec(name) is None]


def versions(kind: str) -> dict[str, str]:
    """Of the packages that open this format."""
    return {name: importlib.metadata.version(name) for name in NEEDS[kind]}


def modeling(path: Path = MODELING) -> ModuleType:
    """The file that opens our own format, as a module."""
    spec = importlib.util.spec_from_file_location("modeling_d2mae", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def open_export(folder: Path) -> Opened:
    """Open what `export.export` wrote there. Raises `UserError`."""
    try:
        certificate = json.loads((folder / CERTIFICATE).read_text(encoding="utf-8"))
        kind, file = certificate["format"], folder / certificate["file"]["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{folder}' is no export: it holds no readable {CERTIFICATE}") from error
    lacking = missing(kind)
    if lacking:
        raise UserError(f"opening a {kind} export needs {', '.join(lacking)}: {EXTRA}")
    return open_file(kind, file, certificate)


def open_file(kind: str, file: Path, certificate: dict[str, Any]) -> Opened:
    """Open one file of weights, strictly: every name and shape must fit."""
    torch = need_torch("exports")
    torch.set_grad_enabled(False)
    try:
        if kind == "timm":
            return _timm(torch, file, certificate["opens_with"])
        if kind == "hf":
            return _hf(torch, file.parent, certificate["opens_with"]["class"])
        if kind in ("monai", "dae"):
            return _swin(torch, file, certificate)
        return _ours(torch, file, certificate["network"])
    finally:
        torch.set_grad_enabled(True)


def _state(torch: Any, file: Path) -> dict[str, Any]:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    found = torch.load(file, map_location="cpu", weights_only=True)
    return found.get("model", found)


def _calls(torch: Any, **functions: Callable[..., Any] | None) -> dict[str, Any]:
    """The same functions of NumPy arrays, without gradients."""

    def wrap(function: Callable[..., Any]) -> Callable[..., np.ndarray]:
        def call(*arguments: Any) -> np.ndarray:
            tensors = [torch.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
            with torch.inference_mode():
                return function(*tensors).numpy()

        return call

    return {name: wrap(f) for name, f in functions.items() if f is not None}


def _ours(torch: Any, file: Path, network: dict[str, Any]) -> Opened:
    beside = file.with_name(MODELING.name)
    module = modeling(beside if beside.exists() else MODELING)
    model = module.D2MAE(network)
    model.load_state_dict(_state(torch, file), strict=True)
    model.eval()
    layers = {name: part for name, part in model.named_modules() if _is_layer(name)}
    if network["task"] == "classify":
        return Opened(
            model, layers=layers, **_calls(torch, features=model.features, logits=model.classify)
        )
    functions = {
        "tokens": model.encode,
        "reconstruct": lambda x, level, ratio, noise: model(x, level, ratio, noise)[0],
    }
    return Opened(model, layers=layers, **_calls(torch, **functions))


def _swin(torch: Any, file: Path, certificate: dict[str, Any]) -> Opened:
    """Both layouts through the file beside the weights; MONAI's also through MONAI alone, where it can."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MONAI's own, of what it imports
        module = modeling(MODELING_SWIN)
        opens = certificate["opens_with"]
        order = opens["merge_order"]
        if certificate["format"] == "monai" and order != "legacy":
            arguments = opens["arguments"] | ({"downsample": "mergingv2"} if order == "v2" else {})
            model = module.SwinUNETR(**arguments).eval()
            model.load_state_dict(_state(torch, file), strict=True)
        else:
            model = module.load(file.parent, file.name)

    def volume(x: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        data = torch.tensor(x)
        with torch.inference_mode():
            hidden = model.swinViT(data, model.normalize)
            return model(data).numpy(), [h.numpy() for h in hidden]

    return Opened(model, volume=volume)


def _timm(torch: Any, file: Path, opens: dict[str, Any]) -> Opened:
    import timm

    model = timm.create_model(opens["model"], pretrained=False, **opens["arguments"])
    model.load_state_dict(_state(torch, file), strict=True)
    model.eval()
    layers = {name: part for name, part in model.named_modules() if _is_layer(name)}
    if not opens["arguments"]["num_classes"]:
        return Opened(
            model, layers=layers, **_calls(torch, tokens=lambda x, level: model.forward_features(x))
        )
    functions = {
        "features": lambda x, level: model.forward_head(model.forward_features(x), pre_logits=True),
        "logits": lambda x, level: model(x),
    }
    return Opened(model, layers=layers, **_calls(torch, **functions))


def _hf(torch: Any, folder: Path, name: str) -> Opened:
    import transformers

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
    layers = {ours: part for n, part in model.named_modules() if (ours := _hf_layer(n))}
    if name != "ViTMAEForPreTraining":

        def features(x: Any, level: Any) -> Any:
            if name.startswith("Beit"):
                return model.beit(x).pooler_output
            return model.vit(x).last_hidden_state[:, 0]

        functions = {"features": features, "logits": lambda x, level: model(x).logits}
        return Opened(model, layers=layers, **_calls(torch, **functions))

    def in_order(x: Any) -> Any:
        count = (model.config.image_size // model.config.patch_size) ** 2
        return torch.arange(count).expand(x.shape[0], -1).float()

    def tokens(x: Any, level: Any) -> Any:
        model.config.mask_ratio = 0.0
        return model.vit(x, noise=in_order(x)).last_hidden_state

    def reconstruct(x: Any, level: Any, ratio: float, noise: Any) -> Any:
        model.config.mask_ratio = ratio
        return model(x, noise=in_order(x) if noise is None else noise).logits

    return Opened(model, layers=layers, **_calls(torch, tokens=tokens, reconstruct=reconstruct))


_LAYERS = ("norm", "fc_norm", "decoder_embed", "decoder_norm", "decoder_pred", "head")


def _is_layer(name: str) -> bool:
    stem, _, number = name.rpartition(".")
    return name in _LAYERS or (stem in ("blocks", "decoder_blocks") and number.isdigit())


def _hf_layer(name: str) -> str:
    """A module of transformers under MAE's name; empty for those that are compared nowhere."""
    known = {"layernorm": "norm", "decoder.decoder_embed": "decoder_embed", "classifier": "head",
             "decoder.decoder_norm": "decoder_norm", "decoder.decoder_pred": "decoder_pred",
             "pooler.layernorm": "fc_norm"}  # fmt: skip
    inner = name.removeprefix("vit.").removeprefix("beit.")
    if inner in known:
        return known[inner]
    stem, _, number = inner.rpartition(".")
    if number.isdigit():
        if stem in ("layers", "encoder.layer"):
            return f"blocks.{number}"
        if stem == "decoder.decoder_layers":
            return f"decoder_blocks.{number}"
    return ""
