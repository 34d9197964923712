"""Files of weights: safetensors, PyTorch's `.pth`, Hugging Face folders.

A pickle is only ever read through `torch.load(weights_only=True)` of torch 2.6 or newer, which builds
tensors and plain containers and runs nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pytorch import formats, swin_formats

PICKLES = (".pth", ".pt", ".bin", ".ckpt")
IN_FOLDERS = (
    "model.safetensors",
    "d2mae.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
)
EXTRA = "pip install 'deblur_mae_jax[pytorch]'"
# Where training code puts the weights inside a checkpoint, and what wrappers put before their names.
_INSIDE = ("model", "state_dict", "module")
_PREFIXES = ("module.", "_orig_mod.")


@dataclasses.dataclass
class Weights:
    """A file that was read. state: under MAE's names; format: the one it was in; header: of our own
    files; config: of a Hugging Face or timm folder; arguments: of the command that trained it."""

    path: Path
    state: formats.State
    format: str
    header: dict[str, str]
    config: dict[str, Any]
    arguments: dict[str, Any]


def is_weights(path: Path) -> bool:
    """Whether `path` is a file of weights or a folder that holds one, rather than the workdir of a run."""
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
                f"'{path.suffix or path.name}' is no kind of weights. Choices: the workdir of a run, "
                f".safetensors, {', '.join(PICKLES)}, a Hugging Face folder"
            )
        damaged = sorted(k for k, v in state.items() if not np.isfinite(v).all())
        if damaged:
            raise UserError(f"NaN or infinite values in {', '.join(damaged[:3])}")
        to_ours = swin_formats.to_ours if swin_formats.is_swin(state) else formats.to_ours
        state, kind = to_ours(state)
    except UserError as error:
        raise UserError(f"{field}: '{path}': {error}") from error
    return Weights(path, state, kind, header, _config_beside(folder, path), arguments)


def _config_beside(folder: Path, path: Path) -> dict[str, Any]:
    """`config.json` and `preprocessor_config.json` of a Hugging Face or timm folder."""
    if path.name not in IN_FOLDERS:
        return {}
    config: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "config.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        config |= found if isinstance(found, dict) else {}
    return config


def _safetensors(path: Path) -> tuple[formats.State, dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            header = file.metadata() or {}
            try:
                state = {name: file.get_tensor(name) for name in names}
            except TypeError:  # bfloat16, which NumPy has not
                state = _through_torch(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"it cannot be read, it is damaged or no safetensors file: {error}"
        ) from error
    return {k: _plain(v) for k, v in state.items()}, header


def _through_torch(path: Path) -> dict[str, np.ndarray]:
    need_torch("bfloat16 weights")
    from safetensors.torch import load_file

    return {name: tensor.float().numpy() for name, tensor in load_file(path).items()}


def need_torch(what: str) -> Any:
    """The module `torch`, or a `UserError` that says what to install."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{what} need PyTorch, which is not installed: {EXTRA}") from error
    if tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6):
        raise UserError(
            f"torch {torch.__version__} is too old to read files safely: {EXTRA} brings 2.6 or newer"
        )
    return torch


def _pickle(path: Path) -> tuple[formats.State, dict[str, Any]]:
    torch = need_torch("files of PyTorch (.pth)")
    try:
        # Training scripts keep their arguments in a Namespace, which is data and nothing else.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage shows in as many ways as there are files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        refused = "weights_only" in str(error) or "Unsupported" in str(error)
        why = (
            "it holds more than tensors, so it is not opened: loading it could run code"
            if refused
            else f"it cannot be read, it is damaged or no PyTorch file: {reason[:160]}"
        )
        raise UserError(why) from error
    arguments: dict[str, Any] = {}
    if isinstance(found, dict):
        args = found.get("args")
        if isinstance(args, argparse.Namespace):
            arguments = vars(args)
        for name in _INSIDE:
            if isinstance(found.get(name), dict):
                found = found[name]
    if not isinstance(found, dict):
        raise UserError(f"it holds a {type(found).__name__}, not weights by name")
    state = {}
    for name, value in found.items():
        if isinstance(value, torch.Tensor):
            for prefix in _PREFIXES:
                name = name.removeprefix(prefix)
            state[name] = _plain(value.detach().float().numpy())
    return state, arguments


def _plain(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32) if value.dtype.kind == "f" else value
