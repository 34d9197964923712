"""Open an export in PyTorch with the library that it was written for."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.weight_formats import contract
from deblur_mae_jax.weight_formats.contract import Opened
from deblur_mae_jax.weight_formats.torch_calls import EXTRA

CERTIFICATE = "certificate.json"


def missing(format: Any) -> list[str]:
    """The missing packages among those that a format (a module) needs to open its files."""
    return [name for name in format.NEEDS if importlib.util.find_spec(name) is None]


def versions(format: Any) -> dict[str, str]:
    """The versions of the packages that open a format."""
    return {name: importlib.metadata.version(name) for name in format.NEEDS}


def open_export(folder: Path) -> Opened:
    """Open the export that `export.export` wrote into `folder`. Raises `UserError`."""
    try:
        certificate = json.loads((folder / CERTIFICATE).read_text(encoding="utf-8"))
        format = contract.named(certificate["format"], certificate["network"].get("model", ""))
        file = folder / certificate["file"]["name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{folder}' is not an export: it holds no readable {CERTIFICATE}") from error
    lacking = missing(format)
    if lacking:
        raise UserError(f"opening a {format.NAME} export needs {', '.join(lacking)}: {EXTRA}")
    return open_file(format, file, certificate)


def open_file(format: Any, file: Path, certificate: dict[str, Any]) -> Opened:
    """Open one weight file, strictly: every name and shape must fit."""
    if "torch" not in format.NEEDS:
        return format.open(file, certificate)
    import torch

    with torch.no_grad():
        return format.open(file, certificate)
