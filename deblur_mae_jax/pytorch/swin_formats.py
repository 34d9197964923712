"""State dicts of Swin-UNETR: MONAI's names (ours), MONAI's self-supervised ones, and DAE's; NumPy only."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.pytorch.formats import State

# Computed, not learned; and layers that MONAI 0.8, which DAE pins, creates and never uses.
_UNUSED = re.compile(
    r"relative_position_index$|^encoder(2|3|4|10)\.layer\.conv3\.|^(encoder|swinViT)\.norm\.|^encoder\.mask_token$"
)


def is_swin(names: Iterable[str]) -> bool:
    """Whether a state dict of these names holds a Swin-UNETR, or its encoder."""
    return any(re.match(r"(module\.)?(swinViT\.|encoder\.)?layers1\.0\.", n) for n in names)


def recognise(names: set[str]) -> str:
    """ "monai", "monai_ssl" (an encoder alone) or "dae"; raises `UserError`."""
    if any(n.startswith("swinViT.layers1.") for n in names):
        return "monai"
    if any(n.startswith("encoder.layers1.0.0.") for n in names):
        return "dae"
    if any(re.match(r"(module\.)?layers1\.0\.", n) for n in names):
        return "monai_ssl"
    shown = ", ".join(sorted(names)[:4]) or "nothing"
    raise UserError(
        f"it holds no Swin-UNETR; its first names are {shown}. Choices: MONAI's SwinUNETR, MONAI's "
        "self-supervised checkpoints, DAE's"
    )


def to_ours(state: State) -> tuple[State, str]:
    """(state dict under MONAI's names without what is not learned, the layout it was in)."""
    kind = recognise(set(state))
    out: State = {}
    for name, value in state.items():
        name = name.removeprefix("module.")
        if kind == "dae":
            name = re.sub(r"^encoder\.layers(\d)\.0\.0\.", r"swinViT.layers\1.0.", name)
            name = re.sub(r"^encoder\.patch_embed\.", "swinViT.patch_embed.", name)
        elif kind == "monai_ssl" and re.match(r"(layers\d|patch_embed)\.", name):
            name = f"swinViT.{name}"
        if _UNUSED.search(name):
            continue
        name = re.sub(r"(swinViT\..*)\.mlp\.fc([12])\.", r"\1.mlp.linear\2.", name)
        if kind == "monai_ssl" and not name.startswith("swinViT."):
            continue  # heads of the pretext tasks
        out[name] = value
    return out, kind


def index_table() -> np.ndarray:
    """The `relative_position_index` that MONAI keeps beside every bias table, int64."""
    from deblur_mae_jax.models.swin import WINDOW, relative_index

    return relative_index((WINDOW,) * 3).astype(np.int64)


def to_monai(state: State) -> State:
    """Ours with the index tables that MONAI's own state dict has."""
    out = dict(state)
    for name in state:
        if name.endswith("relative_position_bias_table"):
            out[name.replace("bias_table", "index")] = index_table()
    return out


def to_dae(state: State) -> State:
    """The layout of DAE's pre-training checkpoints, unused entries as their initialisation left them."""
    out: State = {}
    for name, value in to_monai(state).items():
        name = re.sub(r"^swinViT\.layers(\d)\.0\.", r"encoder.layers\1.0.0.", name)
        name = re.sub(r"^swinViT\.patch_embed\.", "encoder.patch_embed.", name)
        name = re.sub(r"(encoder\.layers.*)\.mlp\.linear([12])\.", r"\1.mlp.fc\2.", name)
        out[name] = value
    width = state["swinViT.layers1.0.blocks.0.norm1.weight"].shape[0]
    out["encoder.mask_token"] = np.zeros((1, 1, width), np.float32)
    out["encoder.norm.weight"] = np.ones(16 * width, np.float32)
    out["encoder.norm.bias"] = np.zeros(16 * width, np.float32)
    return out
