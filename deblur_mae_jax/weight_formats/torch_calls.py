"""PyTorch helpers for the formats that open a network with it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from deblur_mae_jax.errors import UserError

EXTRA = "pip install '.[pytorch]' in the repository"
STANDALONE = Path(__file__).with_name("standalone")
MODELING = STANDALONE / "modeling_d2mae.py"
MODELING_SWIN = STANDALONE / "modeling_swin.py"
_LAYERS = ("norm", "fc_norm", "decoder_embed", "decoder_norm", "decoder_pred", "head")


def need_torch(what: str) -> Any:
    """The module `torch`, or a `UserError` that says what to install."""
    try:
        import torch
    except ImportError as error:
        raise UserError(f"{what} need PyTorch, which is not installed: {EXTRA}") from error
    if tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2]) < (2, 6):
        raise UserError(f"torch {torch.__version__} is too old to read files safely: {EXTRA} brings 2.6 or newer")
    return torch


def state_of(file: Path) -> dict[str, Any]:
    """The tensors of a file by name."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    state = need_torch("exports").load(file, map_location="cpu", weights_only=True)
    return state.get("model", state)


def calls(**functions: Callable[..., Any] | None) -> dict[str, Any]:
    """Wrap functions of tensors so that they take and return NumPy arrays, without gradients."""
    torch = need_torch("exports")

    def wrap(function: Callable[..., Any]) -> Callable[..., np.ndarray]:
        def call(*arguments: Any) -> np.ndarray:
            tensors = [torch.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
            with torch.inference_mode():
                return function(*tensors).numpy()

        return call

    return {name: wrap(f) for name, f in functions.items() if f is not None}


def modeling(path: Path = MODELING) -> ModuleType:
    """A file that opens one of our own formats, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def standalone(file: Path, path: Path) -> ModuleType:
    """The Python file `path` as it stands beside the weights; this library's own if it was moved away."""
    beside = file.with_name(path.name)
    return modeling(beside if beside.exists() else path)


def is_layer(name: str) -> bool:
    """Whether a module of this name is compared with ours."""
    stem, _, number = name.rpartition(".")
    return name in _LAYERS or (stem in ("blocks", "decoder_blocks") and number.isdigit())


def read_lines(name: str) -> list[str]:
    """Python that reads a weight file as `state`."""
    if name.endswith(".safetensors"):
        return ["from safetensors.torch import load_file", f'state = load_file("{name}")']
    return [f'state = torch.load("{name}", weights_only=True)']
