"""Export to PyTorch: weights that MAE's code, timm, Hugging Face or MONAI opens, and a certificate."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deblur_mae_jax import config as fields
from deblur_mae_jax import network as networks
from deblur_mae_jax.data import buckets
from deblur_mae_jax.errors import UserError, one_line
from deblur_mae_jax.export import agreement, card, description, opened
from deblur_mae_jax.pretrained import trained_network
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.weight_formats import channels, contract, d2mae, names
from deblur_mae_jax.weight_formats.contract import State
from deblur_mae_jax.weight_formats.torch_calls import EXTRA, need_torch
from deblur_mae_jax.workdir import run_folder
from deblur_mae_jax.workdir.run_folder import Workdir

# Without a name, the first of these formats that has a place for the network, and then any other.
PREFERRED = ("timm", "monai", "d2mae")
NOT_MEASURED = "not measured"
# Ends of names that mean a file of another format. A folder's name may hold a dot too, as in "vit-0.2".
_OTHER_FILES = {".pt", ".bin", ".ckpt", ".onnx", ".npz", ".npy", ".h5", ".hdf5", ".msgpack", ".pkl", ".json", ".zip",
                ".tar", ".gz", ".tgz", ".csv", ".txt"}  # fmt: skip
# Fields of a config that hold paths.
_PRIVATE = ("data.root", "data.tfds_name", "data.labels", "data.decoded", "report.monitor_root", "init_from",
            "compilation_cache", "search.cache")  # fmt: skip
# Fields of parts of the model that a format leaves out or merges into another layer.
_LEFT_OUT = {"model.mask_token": ("monai", "dae"), "model.probe": ("timm", "hf")}


def export(
    run: str | Path | TrainedNetwork,
    format: str = "",
    output: str | Path = "",
    in_chans: int = 0,
) -> Path:
    """Export the network of `run` to PyTorch and return the folder.

    run: a workdir, a weight file or a loaded network.
    format: one of those that `scripts/export_to_pytorch.py --help` lists, such as "mae", "timm", "hf", "d2mae" or
        "monai". "": timm's or MONAI's if it has a place for the network, else another one.
    output: a folder, or a .safetensors or .pth file in a folder of its own; the run's `export/<format>` by default.
    in_chans: 1 or 3: gray images give the same results up to rounding; 0: as trained.

    Also writes `certificate.json`, with the differences between JAX and PyTorch that are measured here, and a
    `README.md`. Raises `UserError`.
    """
    if format:
        contract.named(format)
    trained = run if isinstance(run, TrainedNetwork) else trained_network.load(run, "RUN")
    module = contract.named(format, trained.config.model.name) if format else _chosen(trained)
    format = module.NAME
    _require_fit(trained, module)
    place = trained.place if isinstance(run, TrainedNetwork) else run
    if not output and buckets.is_address(place):
        output = f"{buckets.folder_of(place)}/export/{module.NAME}"
    target = buckets.Output(output or _home(trained) / "export" / module.NAME, "--output")
    folder, name = _target(target.path, module)
    _require_free(target, name)
    trained, converted = _with_channels(trained, in_chans)
    network = description.describe(trained)
    state, left_out, changed = module.from_ours(network, state_of(trained))
    opens = module.opens_with(network)
    certificate = {
        "format": format,
        "opens_with": opens,
        "network": network,
        "left_out": left_out,
        "changed": converted + changed,
        "source": _source(trained),
        "preprocessing": description.preprocessing(network),
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as temporary:
        draft = Path(temporary)
        _write_weights(draft / name, state, trained, format)
        certificate["searcher"] = _write_searcher(draft, trained, in_chans, module)
        module.companions(draft, network, opens, name)
        certificate["file"] = _fingerprint(draft / name, state)
        certificate["header"] = _header(trained, format)  # a .pth file cannot hold it
        certificate["agreement"], used = _agreement(trained, module, draft / name, certificate)
        certificate["versions"] = _versions() | used
        certificate["exported"] = datetime.datetime.now(datetime.UTC).date().isoformat()
        run_folder.write_json(draft / opened.CERTIFICATE, certificate)
        (draft / card.NAME).write_text(card.text(certificate), encoding="utf-8")
        _move(draft, folder)
    target.send(*([] if target.path == folder else sorted(folder.iterdir())))
    return folder if target.remote is None else target.remote


def _move(draft: Path, folder: Path) -> None:
    """Move an export into its folder, in place of an earlier one, whose network of the search goes."""
    folder.mkdir(exist_ok=True)
    if (folder / opened.CERTIFICATE).exists():
        for old in d2mae.SEARCHER:
            (folder / old).unlink(missing_ok=True)
    for path in sorted(draft.iterdir()):
        os.replace(path, folder / path.name)


def _chosen(trained: TrainedNetwork) -> Any:
    """The first format that has a place for the network. Raises `UserError`."""
    fitting = [m for m in contract.formats().values() if trained.config.model.name in m.MODELS]
    rank = lambda m: PREFERRED.index(m.NAME) if m.NAME in PREFERRED else len(PREFERRED)
    refused: list[UserError] = []
    for module in sorted(fitting, key=rank):
        try:
            module.from_ours(description.describe(trained), state_of(trained))
        except UserError as error:
            refused.append(error)
        else:
            return module
    if refused:
        raise refused[0]
    _require_fit(trained, contract.named(PREFERRED[0]))
    raise AssertionError("a format fits, and was not found")


def _require_fit(trained: TrainedNetwork, module: Any) -> None:
    """Raise `UserError`, naming the formats that can hold the network, if this one cannot."""
    model = trained.config.model.name
    if model in module.MODELS:
        return
    fitting = sorted({other.NAME for other in contract.formats().values() if model in other.MODELS})
    images = networks.IMAGES[trained.network.axes]
    raise UserError(
        f"--format={module.NAME}: it has no place for config.model.name={model}, a network for {images}. Choices: "
        f"{', '.join(fitting) or 'none; fine-tune the network first, or start another run from its encoder'}"
    )


def state_of(trained: TrainedNetwork) -> State:
    """The state dict under our names, with the constant tables of MAE's or MONAI's code, without an empty head."""
    state = names.state_dict_from_params(trained.params)
    state |= trained.network.rules.tables(trained.model)
    return {name: value for name, value in state.items() if value.size}


def _with_channels(trained: TrainedNetwork, in_chans: int) -> tuple[TrainedNetwork, list[str]]:
    """(the network converted to `in_chans` channels, a list of what was changed)."""
    before = trained.config.model.in_chans
    if in_chans in (0, before):
        return trained, []
    if trained.network.axes == 3:
        raise UserError(f"--in_chans={in_chans}: networks for volumes keep their channels")
    if in_chans not in (1, 3):
        raise UserError(f"--in_chans={in_chans}. Choices: 1, 3")
    values: dict[str, Any] = {"model.in_chans": in_chans}
    for name in ("mean", "std"):
        value = trained.config.data[name]
        values[f"data.{name}"] = () if len(value) == before else value
    config = fields.copy(trained.config, values)
    network = networks.build(config, len(trained.classes))
    norm_pix_loss = trained.network.task.norm_pix_loss
    params = channels.convert(trained.params, trained.network.inputs, network.inputs, norm_pix_loss, network.rules)
    wrong = channels.not_converted(params, jax.eval_shape(network.init))
    if wrong:
        raise UserError(
            f"--in_chans={in_chans}: a {config.model.name} reads the image in other places too ({wrong[0]}), which are "
            f"not converted; it can be exported with its {before} channels"
        )
    how = (
        "the patch embedding is divided over three channels, the decoder's prediction repeated for each"
        if in_chans == 3
        else "the patch embedding is summed over the channels, the decoder's predictions averaged"
    )
    done = f"{before} to {in_chans} channels: {how}; gray images give the same results"
    return dataclasses.replace(trained, config=config, network=network, params=params), [done]


def _target(path: Path, module: Any) -> tuple[Path, str]:
    """(folder, name of the weight file). Raises `UserError` if this would overwrite other files."""
    usual = d2mae.WEIGHTS if module is d2mae else contract.WEIGHTS
    if path.suffix in (".safetensors", ".pth"):
        folder, name = path.parent, path.name
    elif path.suffix.lower() in _OTHER_FILES and not path.is_dir():
        raise UserError(f"--output: '{path}' must be a folder, or a file that ends in .safetensors or .pth")
    else:
        folder, name = path, usual
    if module.NAME == "hf" and name != usual:
        raise UserError(f"--output: --format=hf writes a folder that holds {usual}; name a folder")
    if name.endswith(".pth"):
        need_torch(".pth files")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output: '{folder}' is a file, not a folder")
    record = folder / opened.CERTIFICATE
    if record.exists():
        try:
            before = json.loads(record.read_text(encoding="utf-8"))["file"]["name"]
        except (OSError, ValueError, KeyError, TypeError):
            before = "something else"
        if before != name:
            raise UserError(f"--output: '{folder}' already holds the export of {before}; use another folder")
    else:
        there = [n for n in (name, card.NAME, "config.json") if (folder / n).exists()]
        if there:
            raise UserError(
                f"--output: '{folder}' already holds a {there[0]} that no export wrote; use a folder of its own, "
                f"such as {folder / 'export' / name}"
            )
    return folder, name


def _require_free(target: buckets.Output, name: str) -> None:
    """Raise `UserError` if the export would overwrite other files at an address."""
    if target.remote is None:
        return
    folder = target.remote if target.path.name != name else target.remote.parent
    with buckets.reaching("--output", folder, "read"):
        held = {path.name for path in folder.iterdir()} if folder.exists() else set()
    there = sorted(held & {name, card.NAME, "config.json"})
    if there and opened.CERTIFICATE not in held:
        raise UserError(
            f"--output: '{folder}' already holds a {there[0]} that no export wrote; use a folder of its own, such as "
            f"{folder / 'export' / name}"
        )


def _home(trained: TrainedNetwork) -> Path:
    return trained.path if trained.path.is_dir() else trained.path.parent


def _source(trained: TrainedNetwork) -> dict[str, Any]:
    """Where the weights come from, without paths."""
    workdir = Workdir(_home(trained))
    source: dict[str, Any] = {"weights": trained.weights_hash}
    for path, keys in (
        (workdir.environment, ("git",)),
        (workdir.dataset, ("fingerprint", "num_images", "splits")),
    ):
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        source |= {key: record[key] for key in keys if key in record}
    config = {k: v for k, v in fields.flat(trained.config).items() if not k.startswith(_PRIVATE)}
    return source | {"config": config}


def _write_weights(path: Path, state: State, trained: TrainedNetwork, format: str) -> None:
    state = {name: np.ascontiguousarray(value) for name, value in state.items()}
    if path.suffix == ".pth":
        torch = need_torch(".pth files")
        tensors = {name: torch.from_numpy(value.copy()) for name, value in state.items()}
        torch.save({"model": tensors} if format in ("mae", "dae") else tensors, path)
        return
    from safetensors.numpy import save_file

    save_file(state, path, metadata=_header(trained, format))


def _header(trained: TrainedNetwork, format: str) -> dict[str, str]:
    """What a file records of its network: config, without what names a place, and classes."""
    recorded = fields.flat(trained.config)
    values: dict[str, Any] = {name: "" for name in _PRIVATE if name in recorded}
    step = _step_of_search(trained)
    if step is not None:  # "auto" would mean none where the file of the search is missing
        values["search.setting"] = f"search({step:g})"
    values |= {n: False for n, formats in _LEFT_OUT.items() if n in recorded and format in formats}
    return trained_network.header(dataclasses.replace(trained, config=fields.copy(trained.config, values)))


def _step_of_search(trained: TrainedNetwork) -> float | None:
    """The step of the blur search of a classifier or segmentation of 2-D images; `None` if it has none."""
    if not trained.classes or trained.network.axes != 2:
        return None
    kind, step = description.setting(trained)
    return step if kind == "search" else None


def _write_searcher(folder: Path, trained: TrainedNetwork, in_chans: int, module: Any) -> bool:
    """For a network that needs a blur search, also write the pre-trained network that performs it, and say so."""
    if _step_of_search(trained) is None or trained.searcher is None:
        return False
    name = trained.searcher.config.model.name
    if name not in d2mae.MODELS:
        if module is not d2mae:
            return False
        raise UserError(
            f"--format={d2mae.NAME}: the blur of a new image is searched with a {name}, which its file cannot hold. "
            "Fine-tune with --config.search.setting=none or fixed(SIGMA) to export the classifier"
        )
    searcher, _ = _with_channels(trained.searcher, in_chans)
    weights, config = d2mae.SEARCHER
    _write_weights(folder / weights, state_of(searcher), searcher, d2mae.NAME)
    run_folder.write_json(folder / config, description.describe(searcher))
    return True


def _fingerprint(path: Path, state: State) -> dict[str, Any]:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    numbers = int(sum(value.size for value in state.values()))
    return {
        "name": path.name,
        "sha256": digest,
        "bytes": path.stat().st_size,
        "tensors": len(state),
        "numbers": numbers,
    }


def _agreement(
    trained: TrainedNetwork, module: Any, path: Path, certificate: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """(the differences for each output, the versions of the packages that were used)."""
    lacking = opened.missing(module)
    if lacking:
        why = f"{', '.join(lacking)} not installed"
        return {"status": NOT_MEASURED, "why": f"{why}: {EXTRA}"}, {}
    try:
        outputs = agreement.measure(trained, opened.open_file(module, path, certificate))
    except RuntimeError as error:  # PyTorch's, of names or shapes that do not fit
        raise UserError(
            f"--format={module.NAME}: PyTorch cannot open what was written, so nothing is exported: "
            f"{one_line(error, 300)}"
        ) from error
    if not all(np.isfinite(list(output.values())).all() for output in outputs.values()):
        raise UserError("RUN: the results of its network are not finite, so nothing is exported")
    record = {"status": "measured", "precision": "float32", "outputs": outputs}
    return record, opened.versions(module)


def _versions() -> dict[str, str]:
    try:
        ours = importlib.metadata.version("deblur_mae_jax")
    except importlib.metadata.PackageNotFoundError:
        ours = "from source"
    return {
        "deblur_mae_jax": ours,
        "jax": jax.__version__,
        "flax": importlib.metadata.version("flax"),
    }
