"""Trained networks to start from: a workdir of ours, or a file of weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from deblur_mae_jax import checkpoint, pytorch, workdir
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import position
from deblur_mae_jax.network import build_network, is_supervised

# Parts of a pre-training network that a classifier does not have.
DECODER = ("decoder_", "mask_token")


@dataclasses.dataclass
class Pretrained:
    """A network with its weights. classes: names, for a classifier."""

    path: Path
    config: ConfigDict
    network: Any
    params: Any
    classes: list[str]

    @property
    def weights_hash(self) -> str:
        """Changes with any weight."""
        digest = hashlib.sha256()
        for name, value in sorted(traverse_util.flatten_dict(self.params, sep="/").items()):
            digest.update(f"{name} {value.shape} {value.dtype}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        return digest.hexdigest()[:32]


def read_config(folder: Path) -> ConfigDict:
    """The config of a run, from its workdir or the path of its `config.json`."""
    path = folder if folder.name == "config.json" else folder / "config.json"
    if not path.exists():
        raise UserError(f"'{folder}' is not a run: it holds no config.json")
    try:
        return workdir.nested(json.loads(path.read_text()))
    except ValueError as error:
        raise UserError(f"'{path}' is not readable JSON: {error}") from error


def load(path: str | Path, field: str = "config.init_from") -> Pretrained:
    """Config, network and weights of a run, the best ones for a classifier. Raises `UserError`."""
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{field}: '{path}' does not exist")
    if path.is_file() and path.suffix == ".safetensors":
        return _from_file(path, field)
    folder = path.parent if path.name == "config.json" else path
    try:
        config = read_config(folder)
    except UserError as error:
        raise UserError(f"{field}: {error}") from error
    classes: list[str] = []
    if is_supervised(config):
        record = folder / "dataset.json"
        if not record.exists():
            raise UserError(f"{field}: '{folder}' holds no dataset.json: the run never started")
        classes = json.loads(record.read_text())["class_names"]
    network = build_network(config, len(classes))
    shapes = jax.eval_shape(network.init)
    try:
        params = checkpoint.load_params(folder, shapes)
    except UserError as error:
        raise UserError(f"{field}: {error}") from error
    return Pretrained(folder, config, network, params, classes)


def _from_file(path: Path, field: str) -> Pretrained:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{field}: cannot read '{path}': {error}") from error
    if "config" not in header:
        raise UserError(
            f"{field}: '{path}' does not say what network it belongs to (no 'config' in its header)"
        )
    config = workdir.nested(json.loads(header["config"]))
    classes = json.loads(header.get("classes", "[]"))
    network = build_network(config, len(classes))
    try:
        params = pytorch.params_from_state_dict(state, jax.eval_shape(network.init))
    except UserError as error:
        raise UserError(f"{field}: '{path}': {error}") from error
    return Pretrained(path, config, network, params, classes)


def save_file(path: Path, trained: Pretrained) -> None:
    """Weights under PyTorch's names, with config and classes in the header, for `load`."""
    from safetensors.numpy import save_file as save

    state = pytorch.state_dict_from_params(trained.params)
    header = {
        "config": json.dumps(workdir.flat(trained.config), default=str),
        "classes": json.dumps(trained.classes),
    }
    save({k: np.ascontiguousarray(v) for k, v in state.items()}, path, metadata=header)


def fit(
    trained: Pretrained,
    shapes: Any,
    model: Any,
    strict: bool = True,
    classes: list[str] | None = None,
) -> tuple[Any, list[str]]:
    """The weights that the classifier `model` with parameters of these `shapes` can take.

    A head is taken only from a classifier of the same `classes`.

    The position table is resized to the model's grid as MAE's code does it. Returns a nested dict and
    the names of the parts that start anew. Raises `UserError` listing what does not fit, unless
    `strict` is off.
    """
    have = traverse_util.flatten_dict(trained.params, sep="/")
    if trained.classes != classes:
        have = {name: value for name, value in have.items() if not name.startswith("head")}
    need = traverse_util.flatten_dict(shapes, sep="/")
    before = trained.network.model
    table = have.get("pos_embed")
    if table is None:  # pre-training networks have a fixed one
        table = position.sincos_2d(before.embed_dim, before.grid, model.num_prefix)[None]
    have["pos_embed"] = position.resize_table(np.asarray(table), model.grid, model.num_prefix)
    taken = {k: v for k, v in have.items() if k in need and v.shape == tuple(need[k].shape)}
    fresh = ("head", "fc_norm")
    missing = sorted(k for k in need if k not in have and not k.startswith(fresh))
    ignored = (*DECODER, "head", "fc_norm", "norm/")
    extra = sorted(k for k in have if k not in need and not k.startswith(ignored))
    shape = sorted(
        f"{k} {tuple(have[k].shape)} instead of {tuple(need[k].shape)}"
        for k in have
        if k in need and k not in taken and not k.startswith("head")
    )
    if (missing or extra or shape) and strict:
        parts = [
            f"{name} {_some(items)}"
            for name, items in (("missing", missing), ("extra", extra), ("other shape", shape))
            if items
        ]
        raise UserError(
            f"config.init_from: the weights do not fit the network: {'; '.join(parts)}. "
            "--config.init_strict=False takes what fits"
        )
    new = sorted({k.split("/")[0] for k in need} - {k.split("/")[0] for k in taken})
    return traverse_util.unflatten_dict(taken, sep="/"), new


def _some(items: list[str]) -> str:
    return ", ".join(items[:6]) + (f" and {len(items) - 6} more" if len(items) > 6 else "")
