"""Weight files: safetensors, PyTorch's `.pth`, Hugging Face folders.

Pickles are read only with `torch.load(weights_only=True)` of torch 2.6 or newer, which builds
tensors and plain containers and executes no code.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.weight_formats.contract import State, Weights, recognise
from deblur_mae_jax.weight_formats.torch_calls import need_torch

PICKLES = (".pth", ".pt", ".bin", ".ckpt")
IN_FOLDERS = (
    "model.safetensors",
    "d2mae.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
)
# The keys under which training code stores the weights, and the prefixes that wrappers add to their names.
_INSIDE = ("model", "state_dict", "module")
_PREFIXES = ("module.", "_orig_mod.")
# The header entry of a safetensors file that uses this library's own names.
OWN_NAMES = "deblur_mae_jax"


def is_weights(path: Path) -> bool:
    """Whether `path` is a weight file or a folder that holds one, not the workdir of a run."""
    if path.is_dir():
        return any((path / name).is_file() for name in IN_FOLDERS)
    return path.is_file() and path.name != "config.json"


def read(path: Path, field: str) -> Weights:
    """Read weights under MAE's names. Raises `UserError` naming `field` and the file."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir():
        path = next(folder / name for name in IN_FOLDERS if (folder / name).is_file())
    header: dict[str, str] = {}
    arguments: dict[str, Any] = {}
    try:
        if path.suffix == ".safetensors":
            state, header = _safetensors(path)
        elif path.suffix in PICKLES:
            state, arguments = _pickle(path)
        else:
            raise UserError(
                f"'{path.suffix or path.name}' is not a weight file. Choices: the workdir of a run, "
                f".safetensors, {', '.join(PICKLES)}, a Hugging Face folder"
            )
        damaged = sorted(k for k, v in state.items() if not np.isfinite(v).all())
        if damaged:
            raise UserError(f"NaN or infinite values in {', '.join(damaged[:3])}")
        state = {_unwrapped(name): value for name, value in state.items()}
        format = None if header.get("names") == OWN_NAMES else recognise(state)
        state = state if format is None else format.to_ours(state)
    except UserError as error:
        raise UserError(f"{field}: '{path}': {error}") from error
    return Weights(path, state, format, header, _config_beside(folder, path), arguments)


def _config_beside(folder: Path, path: Path) -> dict[str, Any]:
    """`config.json` and `preprocessor_config.json` of a Hugging Face or timm folder."""
    if path.name not in IN_FOLDERS:
        return {}
    config: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "config.json"):
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        config |= content if isinstance(content, dict) else {}
    return config


def _unwrapped(name: str) -> str:
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _safetensors(path: Path) -> tuple[State, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            header = file.metadata() or {}
            try:
                state = {name: file.get_tensor(name) for name in names}
            except TypeError:  # bfloat16, which NumPy lacks
                state = _through_torch(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"it cannot be read; it is damaged or not a safetensors file: {error}") from error
    return {k: _plain(v) for k, v in state.items()}, header


def _through_torch(path: Path) -> dict[str, np.ndarray]:
    need_torch("bfloat16 weights")
    from safetensors.torch import load_file

    return {name: tensor.float().numpy() for name, tensor in load_file(path).items()}


def _pickle(path: Path) -> tuple[State, dict[str, Any]]:
    torch = need_torch("files of PyTorch (.pth)")
    try:
        # Training scripts store their arguments in a Namespace, which holds only data.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise almost any exception
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        refused = "weights_only" in str(error) or "Unsupported" in str(error)
        why = (
            "it holds more than tensors, so it is not opened: loading it could run code"
            if refused
            else f"it cannot be read; it is damaged or not a PyTorch file: {reason[:160]}"
        )
        raise UserError(why) from error
    arguments: dict[str, Any] = {}
    if isinstance(content, dict):
        args = content.get("args")
        if isinstance(args, argparse.Namespace):
            arguments = vars(args)
        for name in _INSIDE:
            if isinstance(content.get(name), dict):
                content = content[name]
    if not isinstance(content, dict):
        raise UserError(f"it holds a {type(content).__name__}, not weights by name")
    state = {}
    for name, value in content.items():
        if isinstance(value, torch.Tensor):
            state[name] = _plain(value.detach().float().numpy())
    return state, arguments


def _plain(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype.kind == "f" else value
