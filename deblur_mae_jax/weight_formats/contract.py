"""The contract of a weight format. Each format is one file.

A file `deblur_mae_jax/weight_formats/<name>.py` is a format if it has `NAME`. It has

    NAME             as in `--format=<NAME>`; two files may have the same, for different networks
    TITLE            the library or code that reads its weights, for help texts and model cards
    MODELS           the networks that it can hold, by their names in `deblur_mae_jax/models`
    NEEDS            packages that open it in PyTorch
    matches(names) -> bool
                     whether a state dict with these names is in this format, and in no other
    to_ours(state) -> state
                     its state dict under this library's names (those of MAE's and MONAI's code). Raises `UserError`
    infer(weights) -> Inferred
                     the config, classes and parts of a file's network; the config comes from the header if there is one
    from_ours(network, state) -> Converted
                     the inverse of `to_ours`; `network` is `export.description.describe`. Raises `UserError` if
                     the network does not fit
    opens_with(network) -> dict
                     the library, class or model, and arguments that open it
    companions(folder, network, opens, weights) -> None
                     writes the other files that the format needs; `weights` is the name of the weight file
    snippet(certificate) -> list of str
                     lines of Python that open it
    open(file, certificate) -> Opened
                     the network in PyTorch, for measuring how well it agrees
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from deblur_mae_jax import lookup
from deblur_mae_jax.errors import UserError, unknown

# Arrays by PyTorch's names.
State = dict[str, np.ndarray]
WEIGHTS = "model.safetensors"


@dataclasses.dataclass
class Weights:
    """A weight file that was read.

    state: under this library's names.
    format: the module it was recognised by; None for a file in this library's own names.
    header: the header of one of our safetensors files, else empty; it may hold `config` and `classes`.
    config: the contents of `config.json` and `preprocessor_config.json` of a Hugging Face or timm folder.
    arguments: the training arguments that a `.pth` checkpoint holds.
    notes: assumptions that were made when the file was read.
    """

    path: Path
    state: State
    format: Any
    header: dict[str, str]
    config: dict[str, Any]
    arguments: dict[str, Any]
    notes: list[str] = dataclasses.field(default_factory=list)


class Inferred(NamedTuple):
    """What `infer` found in a weight file.

    values: a flat config.
    classes: the names of the classes.
    notes: notes to print for the user.
    parts: the top-level parameters that the file holds; None: all.
    """

    values: dict[str, Any]
    classes: list[str]
    notes: list[str]
    parts: tuple[str, ...] | None = None


class Converted(NamedTuple):
    """The result of `from_ours`.

    state: the state dict of the format.
    left_out: the parts that the format cannot hold.
    changed: what was changed to fit the format.
    """

    state: State
    left_out: list[str] = []  # noqa: RUF012, never written to
    changed: list[str] = []  # noqa: RUF012


@dataclasses.dataclass
class Opened:
    """A network in PyTorch: functions that take arrays `(B, C, *space)` and levels `(B,)` or `None`.

    module: the network.
    tokens: (x, level) -> all tokens after the norm.
    reconstruct: (x, level, mask_ratio, noise) -> patches.
    features: (x, level) -> the input of the head.
    logits: (x, level) -> logits.
    embed: (x, level) -> embeddings, of a network for contrastive learning.
    prototypes: (x, level) -> similarities to the prototypes, of a student.
    volume: x -> (output, hidden states as the decoder gets them).
    layers: the modules under MAE's names.
    A function is None if the format lacks that part.
    """

    module: Any
    tokens: Callable[..., np.ndarray] | None = None
    reconstruct: Callable[..., np.ndarray] | None = None
    features: Callable[..., np.ndarray] | None = None
    logits: Callable[..., np.ndarray] | None = None
    layers: dict[str, Any] = dataclasses.field(default_factory=dict)
    volume: Callable[..., Any] | None = None
    embed: Callable[..., np.ndarray] | None = None
    prototypes: Callable[..., np.ndarray] | None = None


def formats() -> dict[str, Any]:
    """All formats by the names of their files."""
    return lookup.modules_with("weight_formats", "NAME")


def titles() -> dict[str, str]:
    """`TITLE` of every format by `NAME`; those of files with the same name are joined."""
    out: dict[str, str] = {}
    for module in formats().values():
        before = out.get(module.NAME, module.TITLE)
        out[module.NAME] = before if module.TITLE in before else f"{before}, or {module.TITLE}"
    return out


def named(name: str, model: str = "", field: str = "--format") -> Any:
    """The format of this name, or a `UserError` with the choices.

    model: the network, by its name in `deblur_mae_jax/models`: files with the same `NAME` hold different ones.
    """
    found = [module for module in formats().values() if name == module.NAME]
    if not found:
        raise unknown(field, name, titles())
    return next((module for module in found if model in module.MODELS), found[0])


def recognise(names: Iterable[str]) -> Any:
    """The format of a state dict with these names. Raises `UserError`."""
    names = set(names)
    for module in formats().values():
        if module.matches(names):
            return module
    shown = ", ".join(sorted(names)[:4]) or "nothing"
    known = "; ".join(titles().values())
    raise UserError(
        f"it holds no network of a known format; its first names are {shown}. Choices: {known}; an export of this "
        "library"
    )
