"""Deblurring masked autoencoders for ultrasound, in JAX. The Python interface is in `api.py`."""

from __future__ import annotations

from typing import Any

INTERFACE = (
    "load",
    "prepare",
    "encode",
    "reconstruct",
    "search_blur",
    "predict",
    "degrade",
)
__all__ = [*INTERFACE, "segment", "export_to_pytorch"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: a worker process that only reads images must not start JAX.
    if name in INTERFACE:
        from deblur_mae_jax import api

        return getattr(api, name)
    if name == "segment":
        from deblur_mae_jax.segment_run import segment

        return segment
    if name == "export_to_pytorch":
        from deblur_mae_jax.pytorch.export import export

        return export
    raise AttributeError(f"module 'deblur_mae_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
