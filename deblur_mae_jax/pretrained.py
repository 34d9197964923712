"""Trained networks to start from: a workdir of ours, or a file of weights, ours or PyTorch's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import operator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from deblur_mae_jax import checkpoint, workdir
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.models import position
from deblur_mae_jax.network import build_network, is_supervised, num_axes
from deblur_mae_jax.pytorch import files, foreign, foreign_volumes, names


@dataclasses.dataclass
class Pretrained:
    """A network with its weights. classes: names, of a classifier or a segmentation (background first); mask_values: of
    each class in mask files; format: of a file that is not ours; notes: what had to be assumed of it."""

    path: Path
    config: ConfigDict
    network: Any
    params: Any
    classes: list[str]
    format: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)
    mask_values: list[int] = dataclasses.field(default_factory=list)
    _hashed: tuple[list[Any], str] = dataclasses.field(default=([], ""), init=False, repr=False)

    @property
    def weights_hash(self) -> str:
        """Changes with any weight. Kept as long as every weight is the same object that cannot be written to."""
        weights = sorted(traverse_util.flatten_dict(self.params, sep="/").items())
        known, code = self._hashed
        values = [value for _, value in weights]
        if len(known) == len(values) and all(map(operator.is_, known, values)):
            return code
        digest = hashlib.sha256()
        for name, value in weights:
            digest.update(f"{name} {value.shape} {value.dtype}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        code = digest.hexdigest()[:32]
        if not any(isinstance(v, np.ndarray) and v.flags.writeable for v in values):
            self._hashed = values, code
        return code


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
    """Config, network and weights of a run, the best ones for a classifier; or of a file of weights.

    Files: our exports, MAE and DeblurringMIM checkpoints, timm and Hugging Face ViTs. Raises `UserError`.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"{field}: '{path}' does not exist")
    if files.is_weights(path):
        return _from_file(path, field)
    folder = path.parent if path.name == "config.json" else path
    try:
        config = read_config(folder)
    except UserError as error:
        raise UserError(f"{field}: {error}") from error
    classes: list[str] = []
    values: list[int] = []
    if is_supervised(config):
        record = folder / "dataset.json"
        if not record.exists():
            raise UserError(f"{field}: '{folder}' holds no dataset.json: the run never started")
        known = json.loads(record.read_text())
        classes, values = known["class_names"], known.get("mask_values") or []
    network = build_network(config, len(classes))
    shapes = jax.eval_shape(network.init)
    try:
        params = checkpoint.load_params(folder, shapes)
    except UserError as error:
        raise UserError(f"{field}: {error}") from error
    return Pretrained(folder, config, network, params, classes, mask_values=values)


def _from_file(path: Path, field: str) -> Pretrained:
    weights = files.read(path, field)
    state = weights.state
    notes: list[str] = []
    try:
        if "config" in weights.header:
            config = workdir.nested(json.loads(weights.header["config"]))
            classes = json.loads(weights.header.get("classes", "[]"))
            flat = num_axes(config) == 2
            if flat and not is_supervised(config) and "decoder_pred.weight" not in state:
                config = _encoder_only(weights, config)
        else:
            reader = foreign_volumes if _is_volume(state) else foreign
            values, classes, notes = reader.describe(weights)
            config = workdir.nested(values)
        network = build_network(config, len(classes))
        shapes = jax.eval_shape(network.init)
        alone = "encoder2.layer.conv1.conv.weight" not in state
        if _is_volume(state) and alone and config.model.name == "swin_unetr":
            shapes = {"swinViT": shapes["swinViT"]}  # a self-supervised encoder alone
        elif is_supervised(config) and not classes:  # the empty head of a network without one
            empty = np.zeros((0, network.model.embed_dim), np.float32)
            state = state | {"head.weight": empty, "head.bias": empty[:, 0]}
        params = names.params_from_state_dict(state, shapes)
        notes += _moved_tables(state, network.model)
    except UserError as error:
        raise UserError(f"{field}: '{path}': {error}") from error
    own = "config" in weights.header
    values = json.loads(weights.header.get("mask_values", "[]")) or list(range(len(classes)))
    format = "" if own else weights.format
    return Pretrained(path, config, network, params, classes, format, notes, values)


def _is_volume(state: dict[str, np.ndarray]) -> bool:
    return any(name.startswith("swinViT.") for name in state)


def _encoder_only(weights: files.Weights, config: ConfigDict) -> ConfigDict:
    """The config of an exported encoder whose decoder was left behind."""
    values, _, _ = foreign.describe(weights)
    known = workdir.flat(config)
    kept = {k: v for k, v in known.items() if k in values and not k.startswith("task.name")}
    return workdir.nested(values | {k: v for k, v in kept.items() if k != "model.name"})


def _moved_tables(state: dict[str, np.ndarray], model: Any) -> list[str]:
    """A note where fixed position tables of a file are not the ones this network has."""
    if not hasattr(model, "decode") or not hasattr(model, "grid"):
        return []
    ours = {
        "pos_embed": position.sincos_2d(model.embed_dim, model.grid, model.num_prefix),
        "decoder_pos_embed": position.sincos_2d(
            model.decoder_embed_dim, model.grid, model.num_decoder_prefix
        ),
    }
    out = []
    for name, table in ours.items():
        if name not in state:
            continue
        if state[name].shape[1:] != table.shape:
            raise UserError(f"'{name}': shape {state[name].shape} does not fit {(1, *table.shape)}")
        difference = float(np.abs(state[name][0] - table).max())
        if difference > 1e-4:
            out.append(
                f"{name} of the file is not MAE's fixed table (they differ by up to {difference:.2g}); "
                "the fixed one is used"
            )
    return out


def save_file(path: Path, trained: Pretrained) -> None:
    """Weights under PyTorch's names, with config and classes in the header, for `load`."""
    from safetensors.numpy import save_file as save

    state = names.state_dict_from_params(trained.params)
    save({k: np.ascontiguousarray(v) for k, v in state.items()}, path, metadata=header(trained))


def header(trained: Pretrained) -> dict[str, str]:
    """What a file of ours says of its network."""
    return {
        "format": "pt",
        "config": json.dumps(workdir.flat(trained.config), default=str),
        "classes": json.dumps(trained.classes),
        "mask_values": json.dumps(trained.mask_values),
    }
