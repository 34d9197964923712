"""Export to PyTorch: weights in a file that MAE's code, timm or Hugging Face opens, and the proof beside it."""

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
from ml_collections import ConfigDict

from deblur_mae_jax import network as networks
from deblur_mae_jax import pretrained, transfer, workdir
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.models import position
from deblur_mae_jax.pretrained import Pretrained
from deblur_mae_jax.pytorch import (
    agreement,
    card,
    channels,
    companions,
    description,
    files,
    formats,
    names,
    torch_side,
    volume_exports,
)

NOT_MEASURED = "not measured"
# Fields of a config that say where things lay, not what they were.
_PRIVATE = ("data.root", "data.tfds_name", "init_from", "compilation_cache", "search.cache")


def export(
    run: str | Path | Pretrained,
    format: str = "timm",
    output: str | Path = "",
    in_chans: int = 0,
) -> Path:
    """Write the network of `run`, a workdir or a file, for PyTorch; returns the folder.

    format: "mae" (the names of MAE's and DeblurringMIM's code), "timm", "hf" (a Hugging Face folder) or "d2mae" (with
    a file that holds the network in plain PyTorch); for volumes "monai" or "dae" (DAE's own layout). output: a folder,
    or a .safetensors or .pth file in a folder of its own; the run's `export/<format>` by default. in_chans: 1 or 3,
    converted as `channels.py` says.
    Beside the weights lie `certificate.json`, with the differences between JAX and PyTorch measured now, and a
    `README.md`. Raises `UserError`.
    """
    every = (*formats.FORMATS, *volume_exports.FORMATS)
    if format not in every:
        raise unknown("--format", format, every)
    trained = run if isinstance(run, Pretrained) else pretrained.load(run, "RUN")
    is_volume = networks.num_axes(trained.config) == 3
    fitting = volume_exports.FORMATS if is_volume else formats.FORMATS
    if format not in fitting:
        kind = "volumes" if is_volume else "pictures"
        raise UserError(
            f"--format={format}: the network is for {kind}. Choices: {', '.join(fitting)}"
        )
    if trained.config.task.name == "segment" and not is_volume:
        raise UserError(
            "--format: a ViT with a segmentation decoder has no format yet. Choices: none"
        )
    if is_volume and not hasattr(trained.network.model, "decode"):
        raise UserError(
            "--format: an encoder with the heads of a pretext task has no format. Fine-tune it first"
        )
    folder, name = _target(trained, format, output)
    changed: list[str] = []
    if is_volume:
        if in_chans not in (0, trained.config.model.in_chans):
            raise UserError(f"--in_chans={in_chans}: volumes keep their channels")
        state, left_out = volume_exports.state_of(trained, format)
        more: list[str] = []
        network = volume_exports.describe(trained)
        opens = volume_exports.opens_with(network, format)
        before = {k: network[k] for k in ("spacing", "ct_window", "image_size")}
    else:
        trained, changed = _with_channels(trained, in_chans)
        state, left_out, more = _convert(trained, format)
        opens = description.opens_with(trained, format)
        network = description.describe_network(trained)
        before = description.preprocessing(trained, network)
    certificate = {
        "format": format,
        "opens_with": opens,
        "network": network,
        "left_out": left_out,
        "changed": changed + more,
        "source": _source(trained),
        "preprocessing": before,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".export-") as draft:
        place = Path(draft)
        _write_weights(place / name, state, trained, format)
        if format == "d2mae":
            _write_searcher(place, trained, in_chans)
        companions.write(place, trained, format, network, opens, name)
        certificate["file"] = _fingerprint(place / name, state)
        certificate["agreement"], used = _agreement(trained, format, place / name, certificate)
        certificate["versions"] = {
            "deblur_mae_jax": importlib.metadata.version("deblur_mae_jax")
            if _installed("deblur_mae_jax")
            else "from source",
            "jax": jax.__version__,
            "flax": importlib.metadata.version("flax"),
            **used,
        }
        certificate["exported"] = datetime.datetime.now(datetime.UTC).date().isoformat()
        workdir.write_json(place / torch_side.CERTIFICATE, certificate)
        (place / card.NAME).write_text(card.text(certificate), encoding="utf-8")
        folder.mkdir(exist_ok=True)
        for path in sorted(place.iterdir()):
            os.replace(path, folder / path.name)
    return folder


def state_of(trained: Pretrained) -> formats.State:
    """Every entry that MAE's code has, fixed position tables included, under MAE's names."""
    state = names.state_dict_from_params(trained.params)
    model = trained.network.model
    if hasattr(model, "decode"):
        state["pos_embed"] = position.sincos_2d(model.embed_dim, model.grid, model.num_prefix)[None]
        state["decoder_pos_embed"] = position.sincos_2d(
            model.decoder_embed_dim, model.grid, model.num_decoder_prefix
        )[None]
    elif not model.num_classes:
        state = {k: v for k, v in state.items() if not k.startswith("head")}
    return state


def _with_channels(trained: Pretrained, in_chans: int) -> tuple[Pretrained, list[str]]:
    before = trained.config.model.in_chans
    if in_chans in (0, before):
        return trained, []
    if in_chans not in (1, 3):
        raise UserError(f"--in_chans={in_chans}. Choices: 1, 3")
    config = ConfigDict(trained.config.to_dict(), type_safe=False)
    config.model.in_chans = in_chans
    for name in ("mean", "std"):
        values = config.data[name]
        config.data[name] = () if len(values) == before else values
    network = networks.build_network(config, len(trained.classes))
    old, new = trained.network.inputs, network.inputs
    params = channels.convert(
        trained.params,
        (old.mean, old.std),
        (new.mean, new.std),
        (before, in_chans),
        config.task.get("norm_pix_loss", False),
    )
    how = (
        "the patch embedding is divided over three channels, the decoder's prediction repeated for each"
        if in_chans == 3
        else "the patch embedding is summed over the channels, the decoder's predictions averaged"
    )
    done = f"{before} to {in_chans} channels: {how}; gray images give the same results"
    return dataclasses.replace(trained, config=config, network=network, params=params), [done]


def _convert(trained: Pretrained, format: str) -> tuple[formats.State, list[str], list[str]]:
    """(state dict, what has no place in the format, what was changed for it)."""
    model, state = trained.network.model, state_of(trained)
    if format != "d2mae" and model.conditioning != "none":
        raise UserError(
            f"--format={format}: the network has a blur token, for which {format} has no place. Choices: d2mae"
        )
    if format == "d2mae":
        return state, [], []
    left, changed = [], []
    folded = formats.fold_probe(state)
    if format == "mae":
        if folded is not state:
            state["head.0.num_batches_tracked"] = np.zeros((), np.int64)
        return state, [], []
    if folded is not state:
        changed.append("the BatchNorm of the linear probe is folded into the linear layer")
    if format == "timm":
        if hasattr(model, "decode"):
            left.append("the decoder: timm has no place for it (mae, hf and d2mae have)")
        return formats.to_timm(state), left, changed
    if not hasattr(model, "decode"):
        if model.pool == "mean":
            changed.append(
                "Hugging Face's ViT classifies from the cls token; this network pools the mean of the patches, "
                "so it is written as a BEiT without its extras, which computes the same. BEiT has no bias of the "
                "attention keys, which changes no result"
            )
        if not model.num_classes:
            raise UserError(
                "--format=hf: an encoder without head or decoder. Choices: mae, timm, d2mae"
            )
    return formats.to_hf(state), left, changed


def _target(trained: Pretrained, format: str, output: str | Path) -> tuple[Path, str]:
    """(folder, name of the weights), checked against what lies there."""
    usual = "d2mae.safetensors" if format == "d2mae" else "model.safetensors"
    path = Path(output).expanduser() if output else _home(trained) / "export" / format
    if path.suffix in (".safetensors", ".pth"):
        folder, name = path.parent, path.name
    elif path.suffix and not path.is_dir():
        raise UserError(
            f"--output: '{path}' must be a folder, or a file that ends in .safetensors or .pth"
        )
    else:
        folder, name = path, usual
    if format == "hf" and name != usual:
        raise UserError(f"--output: --format=hf writes a folder that holds {usual}; name a folder")
    if name.endswith(".pth"):
        files.need_torch(".pth files")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output: '{folder}' is a file, not a folder")
    record = folder / torch_side.CERTIFICATE
    if record.exists():
        try:
            before = json.loads(record.read_text(encoding="utf-8"))["file"]["name"]
        except (OSError, ValueError, KeyError, TypeError):
            before = "something else"
        if before != name:
            raise UserError(
                f"--output: '{folder}' already holds the export of {before}; use another folder"
            )
    else:
        there = [n for n in (name, card.NAME, "config.json") if (folder / n).exists()]
        if there:
            raise UserError(
                f"--output: '{folder}' already holds a {there[0]} that is of no export; use a folder of its own, "
                f"such as {folder / 'export' / name}"
            )
    return folder, name


def _home(trained: Pretrained) -> Path:
    return trained.path if trained.path.is_dir() else trained.path.parent


def _source(trained: Pretrained) -> dict[str, Any]:
    """Where the weights come from, without paths."""
    home = _home(trained)
    known: dict[str, Any] = {"weights": trained.weights_hash}
    for name, keys in (
        ("environment.json", ("git",)),
        ("dataset.json", ("fingerprint", "num_images")),
    ):
        try:
            found = json.loads((home / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        known |= {key: found[key] for key in keys if key in found}
    config = {k: v for k, v in workdir.flat(trained.config).items() if not k.startswith(_PRIVATE)}
    return known | {"config": config}


def _write_weights(path: Path, state: formats.State, trained: Pretrained, format: str) -> None:
    state = {name: np.ascontiguousarray(value) for name, value in state.items()}
    if path.suffix == ".pth":
        torch = files.need_torch(".pth files")
        tensors = {name: torch.from_numpy(value.copy()) for name, value in state.items()}
        torch.save({"model": tensors} if format in ("mae", "dae") else tensors, path)
        return
    from safetensors.numpy import save_file

    config = ConfigDict(trained.config.to_dict(), type_safe=False)
    for name in _PRIVATE:
        *parts, leaf = name.split(".")
        node = config
        for part in parts:
            node = node.get(part, ConfigDict())
        if leaf in node:
            node[leaf] = ""
    if config.model.get("mask_token", False):
        config.model.mask_token = False  # it is left out
    if format in ("timm", "hf") and config.model.get("probe", False):
        config.model.probe = False
    save_file(state, path, metadata=pretrained.header(dataclasses.replace(trained, config=config)))


def _write_searcher(place: Path, trained: Pretrained, in_chans: int) -> None:
    """Beside a classifier that needs a search: the pre-trained network that searches."""
    copy = transfer.copy_of_source(trained.path)
    network = description.describe_network(trained)
    if network.get("setting", [""])[0] != "search" or copy is None:
        return
    searcher, _ = _with_channels(pretrained.load(copy), in_chans)
    weights, config = torch_side.SEARCHER
    _write_weights(place / weights, state_of(searcher), searcher, "d2mae")
    workdir.write_json(place / config, description.describe_network(searcher))


def _fingerprint(path: Path, state: formats.State) -> dict[str, Any]:
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
    trained: Pretrained, format: str, path: Path, certificate: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """(differences by output, versions that were used)."""
    lacking = torch_side.missing(format)
    if lacking:
        why = f"{', '.join(lacking)} not installed"
        return {"status": NOT_MEASURED, "why": f"{why}: {files.EXTRA}"}, {}
    opened = torch_side.open_file(format, path, certificate)
    found = agreement.measure(trained, opened)
    return {"status": "measured", "precision": "float32", "outputs": found}, torch_side.versions(
        format
    )


def _installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
