"""A config that reads the images at a path, for commands that are given a path alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deblur_mae_jax import config as fields
from deblur_mae_jax.data import dicom_file, listing
from deblur_mae_jax.data.decode import EXTENSIONS
from deblur_mae_jax.data.packing import FACTS, INDEX
from deblur_mae_jax.errors import UserError, local_path, unknown


def config_for(root: str, name: str = "", **settings: Any) -> ConfigDict:
    """A config whose `config.data` reads the images in `root`.

    root: as `config.data.root`. For volumes it ends in "=ct" or "=mr", or `name` is "nifti".
    name: `config.data.name`. "": a packed set, a CSV, tars, Parquet files, DICOM, volumes or a folder, by what
        is there. A packed set is read with the settings it was packed with.
    settings: other fields of `config.data`.
    Raises `UserError` for unknown fields.
    """
    path = local_path(root, "root")
    own = _facts_of_packed(path) if name in ("", "packed") else {}
    if own:
        name = "packed"
    modality = root.rpartition("=")[2].lower() if "=" in root else ""
    volumes = own.get("axes") == 3 or name in ("nifti", "phantoms3d") or modality in ("ct", "mr")
    axes = 3 if settings.pop("volumes", False) or volumes else 2
    config = fields.volumes() if axes == 3 else fields.pretraining()
    channels = settings.pop("channels", own.get("channels", 1))
    known = [name.removeprefix("data.") for name in fields.flat(config) if name.startswith("data.")]
    for field in settings:
        if field not in known:
            raise unknown("field of config.data", field, known)
    if axes == 2 and not name:
        name = _name_of(path)
    every = "train" if name == "tfds_source" else "all"
    values: dict[str, Any] = {"name": name or "nifti", "root": root, "split": every}
    values |= {field: value for field, value in own.get("decoding", {}).items() if field in known} | settings
    for field, value in settings.items():
        default = config.data[field]
        number = isinstance(default, (int, float)) and not isinstance(default, bool)
        if number and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise UserError(f"config.data.{field}={value!r} must be a number")
    with config.ignore_type():
        fields.change(config, {f"data.{key}": value for key, value in values.items()} | {"model.in_chans": channels})
    return config


def _facts_of_packed(path: Path) -> dict[str, Any]:
    """What a packed set says of itself; {} if there is none at `path`."""
    if not (path / INDEX).is_file():
        return {}
    try:
        return dict(json.loads((path / FACTS).read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def _name_of(path: Path) -> str:
    """The `config.data.name` that fits a path, by its suffix or by what most files of the folder are."""
    kinds = {".parquet": "parquet", ".tar": "webdataset", ".csv": "manifest"}
    if not path.is_dir():
        return kinds.get(path.suffix.lower(), "dicom" if dicom_file.is_dicom(str(path)) else "image_folder")
    found = Counter(Path(file.base).suffix.lower() for file in listing.walk(path).files)
    kinds.pop(".csv")
    shards = {suffix: found.pop(suffix, 0) for suffix in kinds}
    images = sum(count for suffix, count in found.items() if suffix in EXTENSIONS)
    most = max(shards, key=shards.__getitem__)
    return kinds[most] if shards[most] > images else "image_folder"
