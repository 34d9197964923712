"""Load trained networks from the workdir of a run or from a weight file, ours or PyTorch's."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from ml_collections import ConfigDict

from deblur_mae_jax import config as fields
from deblur_mae_jax import network as networks
from deblur_mae_jax.data.listing import existing_root
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.network import Network
from deblur_mae_jax.weight_formats import d2mae, files, names
from deblur_mae_jax.weight_formats.contract import State
from deblur_mae_jax.workdir import mirror
from deblur_mae_jax.workdir.run_folder import Workdir
from deblur_mae_jax.workdir.weights import load_params


@dataclasses.dataclass
class TrainedNetwork:
    """A network with its weights.

    path: the workdir or the weight file on this machine, which may be a copy.
    place: what the user named.
    params: the parameters, as read-only arrays.
    classes: class names of a classifier, or of a segmentation with the background first; else empty.
    mask_values: the value of each class in the mask files.
    format: format name of a third-party file.
    notes: assumptions that were made about such a file.
    """

    path: Path
    config: ConfigDict
    network: Network
    params: Any
    classes: list[str]
    mask_values: list[int] = dataclasses.field(default_factory=list)
    format: str = ""
    notes: list[str] = dataclasses.field(default_factory=list)
    place: str = ""
    programs: dict[str, Any] = dataclasses.field(default_factory=dict, repr=False)

    def __repr__(self) -> str:
        count = sum(np.size(value) for value in jax.tree.leaves(self.params))
        classes = f", classes {', '.join(self.classes)}" if self.classes else ""
        return f"TrainedNetwork('{self.place or self.path}', {self.config.model.name}, {count:,} parameters{classes})"

    def __iter__(self) -> Iterator[Any]:
        """Allow `model, params, info = dm.load(...)`."""
        return iter((self.model, self.params, self))

    @property
    def model(self) -> Any:
        """The Flax module."""
        return self.network.model

    @property
    def info(self) -> TrainedNetwork:
        """The object itself, with config, classes and network."""
        return self

    @functools.cached_property
    def searcher(self) -> TrainedNetwork | None:
        """The network that finds the blur level of new images: this one, or the one it started from."""
        if self.network.can_search:
            return self
        copy = copy_of_source(self.path)
        if copy is None or self.network.axes != 2:
            return None
        source = load(copy)
        if not source.network.can_search:
            return None
        return source.with_params(jax.tree.map(jnp.asarray, source.params))  # on the device, once

    @functools.cached_property
    def weights_hash(self) -> str:
        """A hash that changes with any weight."""
        digest = hashlib.sha256()
        for name, value in sorted(traverse_util.flatten_dict(self.params, sep="/").items()):
            digest.update(f"{name} {value.shape} {value.dtype}".encode())
            digest.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()[:32]

    def jitted(self, name: str, function: Callable[..., Any]) -> Any:
        """Return `jax.jit(function)`, created once per name."""
        if name not in self.programs:
            self.programs[name] = jax.jit(function)
        return self.programs[name]

    def with_params(self, params: Any) -> TrainedNetwork:
        """The same network with other arrays."""
        return dataclasses.replace(self, params=params, programs={})


def read_config(path: Path) -> ConfigDict:
    """The config of a run on this machine, from its workdir or the path of its `config.json`."""
    path = path if path.name == "config.json" else Workdir(path).config
    if not path.exists():
        raise UserError(f"'{path.parent}' is not a run: it holds no config.json")
    try:
        values = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"'{path}' is not readable JSON: {error}") from error
    if not isinstance(values, dict) or "task.name" not in values:
        names = ", ".join(files.IN_FOLDERS)
        raise UserError(
            f"'{path.parent}' is neither a run (its config.json has no task.name) nor a folder with weights ({names})"
        )
    return fields.nested(fields.upgrade(values))


def load(path: str | Path, field: str = "config.init_from", known: dict[str, Any] | None = None) -> TrainedNetwork:
    """Load config, network and weights of a run or a weight file; for a run with labels, the best weights.

    A weight file is one of our exports or has a format of `weight_formats/`. Raises `UserError`.
    known: values of config fields that a weight file does not record, by the last part of their names.
    """
    place = str(path)
    path = existing_root(str(mirror.opened(path, field)), field)
    try:
        if known and not files.is_weights(path):
            raise UserError(f"'{path}' is a run, which records {', '.join(known)}; only a weight file may lack them")
        trained = _from_file(path, field, known or {}) if files.is_weights(path) else _from_run(path)
    except UserError as error:
        if str(error).startswith(field):
            raise
        raise UserError(f"{field}: {error}") from error
    for value in jax.tree.leaves(trained.params):
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    trained.place = place
    return trained


def _from_run(path: Path) -> TrainedNetwork:
    workdir = Workdir(path.parent if path.name == "config.json" else path)
    config = read_config(workdir.path)
    classes: list[str] = []
    values: list[int] = []
    if networks.identify(config).supervised:
        if not workdir.dataset.exists():
            raise UserError(f"'{workdir.path}' holds no dataset.json: the run never started")
        record = json.loads(workdir.dataset.read_text())
        classes, values = record["class_names"], record.get("mask_values") or []
    network = networks.build(config, len(classes))
    params = load_params(workdir, lambda: jax.eval_shape(network.init))
    return TrainedNetwork(workdir.path, config, network, params, classes, values, notes=_unfinished(workdir))


def _unfinished(workdir: Workdir) -> list[str]:
    """A note if a run has not ended, so that its weights may be those of an early step."""
    try:
        result = json.loads(workdir.result.read_text())
        if result.get("finished"):
            return []
        return [f"the run '{workdir.path}' is not finished: it was stopped at step {result['step']}"]
    except (OSError, ValueError, KeyError, AttributeError):
        return [f"the run '{workdir.path}' is not finished: it holds no {workdir.result.name}"]


def _with_known(values: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The config of a weight file with what the user knows of it. Raises `UserError`."""
    names = {
        name.rpartition(".")[2]: name for name in values if name.startswith(("model.", "data.", "task.", "image_"))
    }
    strange = next((name for name in known if name not in names), None)
    if strange is not None:
        raise unknown("field", strange, names)
    for name, value in known.items():
        before = values[names[name]]
        kinds = {float: (int, float), tuple: (tuple, list)}.get(type(before), (type(before),))
        if before is not None and (not isinstance(value, kinds) or isinstance(value, bool) != isinstance(before, bool)):
            raise UserError(f"{name}={value!r} must be of the kind of {before!r} ({type(before).__name__})")
    return values | {names[name]: value for name, value in known.items()}


# What a note says that is about a field; it is dropped if the user states the field.
_ASSUMED = {
    "num_heads": "attention heads of the encoder", "decoder_num_heads": "attention heads of the decoder",
    "mean": "how its images were normalised", "std": "how its images were normalised",
}  # fmt: skip


def _not_known(notes: list[str], known: dict[str, Any]) -> list[str]:
    stated = [words for name, words in _ASSUMED.items() if name in known]
    return [note for note in notes if not any(words in note for words in stated)]


def _from_file(path: Path, field: str, known: dict[str, Any]) -> TrainedNetwork:
    weights = files.read(path, field)
    infer = d2mae.infer if weights.format is None else weights.format.infer
    try:
        values, classes, notes, held = infer(weights)
        config = fields.nested(_with_known(values, known))
        network = networks.build(config, len(classes))
        shapes = jax.eval_shape(network.init)
        held = json.loads(weights.header["held"]) if "held" in weights.header else held
        if held is not None:
            shapes = {name: shapes[name] for name in held}
        tables = network.rules.tables(network.model)
        params = names.params_from_state_dict(weights.state, shapes, tables)
        notes = [*weights.notes, *_not_known(notes, known), *_other_tables(weights.state, tables)]
        notes += json.loads(weights.header.get("notes", "[]"))
    except UserError as error:
        hint = (
            ". Which levels its blur token means is in certificate.json, or in the header of a safetensors file: keep "
            "it beside the file, or use dm.load(FILE, conditioning='token', "
            "degrade='blur.gaussian_levels(max_sigma=1.1)')"
            if "blur_token" in str(error)
            else ""
        )
        raise UserError(f"{field}: '{path}': {error}{hint}") from error
    except (ValueError, KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise UserError(f"{field}: '{path}': {files.misfit(error)}") from error
    ours = "config" in weights.header
    mask_values = json.loads(weights.header.get("mask_values", "[]")) or list(range(len(classes)))
    format = "" if ours else weights.format.NAME
    return TrainedNetwork(path, config, network, params, classes, mask_values, format, notes)


def _other_tables(state: State, tables: State) -> list[str]:
    """Return a note if the constant tables of a file differ from those of this network.

    Raises `UserError` if their shape differs.
    """
    out = []
    for name, table in tables.items():
        if name not in state:
            continue
        if state[name].shape != table.shape:
            raise UserError(f"'{name}': shape {state[name].shape} does not fit {table.shape}")
        difference = float(np.abs(state[name] - table).max())
        if difference > 1e-4:
            out.append(
                f"{name} of the file is not MAE's fixed table (they differ by up to {difference:.2g}); "
                "the fixed one is used"
            )
    return out


def copy_of_source(path: Path) -> Path | None:
    """File with the weights of the network that the run or export at `path` started from."""
    folder = path if path.is_dir() else path.parent
    copies = (Workdir(folder).pretrained_weights, folder / d2mae.SEARCHER[0])
    return next((copy for copy in copies if copy.exists()), None)


def save_file(path: Path, trained: TrainedNetwork) -> None:
    """Save weights under our own names, with config and classes in the header, for `load`."""
    from safetensors.numpy import save_file as save

    state = names.state_dict_from_params(trained.params)
    metadata = header(trained) | {"names": files.OWN_NAMES, "notes": json.dumps(trained.notes)}
    if set(trained.params) < set(jax.eval_shape(trained.network.init)):  # an encoder alone
        metadata["held"] = json.dumps(sorted(trained.params))
    save({k: np.ascontiguousarray(v) for k, v in state.items()}, path, metadata=metadata)


def header(trained: TrainedNetwork) -> dict[str, str]:
    """Metadata of the network in one of our safetensors files."""
    return {
        "format": "pt",
        "config": json.dumps(fields.flat(trained.config), default=str),
        "classes": json.dumps(trained.classes),
        "mask_values": json.dumps(trained.mask_values),
    }
