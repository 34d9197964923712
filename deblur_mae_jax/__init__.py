"""Deblurring masked autoencoders for medical images, in JAX. The Python interface is in `api.py`."""

from __future__ import annotations

from typing import Any

__all__ = [
    "TrainedNetwork", "UserError", "degrade", "encode", "export_to_pytorch", "load", "pack", "predict", "prepare",
    "reconstruct", "search_blur", "segment",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # Loaded on first use: a worker process that only reads images must not start JAX.
    if name == "export_to_pytorch":
        from deblur_mae_jax.export.export import export

        return export
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("deblur_mae_jax")
        except PackageNotFoundError:  # a checkout that is not installed
            return "unknown"
    if name == "UserError":
        from deblur_mae_jax.errors import UserError

        return UserError
    if name in __all__:
        from deblur_mae_jax import api

        return getattr(api, name)
    raise AttributeError(f"module 'deblur_mae_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
