"""Load the images that a config names, and build their pre-flight index."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from deblur_mae_jax import lookup
from deblur_mae_jax.config import copy, decoding
from deblur_mae_jax.config.fields import IMAGES, SOURCE
from deblur_mae_jax.data import dicom, spelling
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.source import Source
from deblur_mae_jax.errors import UserError

Progress = Callable[[int, int], None]


# Sources of 2-D images, and the sources of volumes that read the same files.
VOLUMES = {"dicom": "dicom_volumes", "packed": "packed_volumes"}
USUAL = {volumes: name for name, volumes in VOLUMES.items()}
# Sources of files in a folder, and the source that reads them if most are DICOM.
FOLDERS = {"image_folder": "dicom", "nifti": "dicom_volumes"}


def module_of(name: str, axes: int) -> Any:
    """The file of `deblur_mae_jax/data` that `config.data.name` means for images with so many axes."""
    return lookup.module("data", VOLUMES.get(name, name) if axes == 3 else name, "source", "config.data.name")


def load_source(config: ConfigDict, split: str | None = None) -> Source:
    """The images that `config.data` names. `split` replaces `config.data.split`."""
    data = config.data if split is None else copy(config.data, {"split": split})
    axes = lookup.module("models", config.model.name, "Model", "config.model.name").AXES
    module, used = module_of(data.name, axes), name_used(config)
    if used != data.name:
        module = module_of(used, axes)
    _refuse_unused(data, USUAL.get(used, used), module)
    if used != data.name:
        source = module.source(copy(data, {"root": _without_modality(str(data.root))}), config.model.in_chans)
        said = "most files are DICOM, so they are read as with config.data.name=dicom"
        source = dataclasses.replace(source, notes=[said, *source.notes])
    else:
        source = module.source(data, config.model.in_chans)
    if unused := _unused(data, module):
        source = dataclasses.replace(source, notes=[*source.notes, *unused])
    if source.groups is not None:
        notes = list(source.notes)
        source = dataclasses.replace(source, groups=spelling.one_patient(source.groups, notes), notes=notes)
    return source


# Fields that say what the images are, which a source that does not read them must not ignore, and what to do instead.
SAYS = ("group_pattern", "labels", "columns", "tfds_name")
INSTEAD = {
    "dicom": "patients and labels of DICOM files are in their headers and in the CSV of config.data.labels",
    "image_folder": "classes of a folder are its sub-folders; a CSV (config.data.name=manifest) has columns",
    "parquet": "a Parquet file has the columns label, group and split",
    "packed": "classes and patients are packed with the images",
}


# Fields of a few sources, which change nothing where another one reads the images, and these sources.
_ONLY = {
    "num_images": ("phantoms", "phantoms3d"), "window": ("dicom",), "frames": ("dicom",), "crop": ("dicom",),
    "allow_burned_in": ("dicom", "dicom_volumes"), "side": ("phantoms", "phantoms3d"),
    "phantom_seed": ("phantoms", "phantoms3d"),
}  # fmt: skip


def _unused(data: ConfigDict, module: Any) -> list[str]:
    """A note for every field with another value than the default that this source of the library does not read."""
    own = module.__name__.rpartition(".")[2]
    if not hasattr(module, "READS") or own in ("packed", "packed_volumes"):
        return []
    usual = {name: field.default for name, field in (IMAGES | SOURCE).items()}
    hint = {"num_images": "; config.data.fraction takes a share of the images"}
    return [
        f"config.data.{field}={data[field]!r} is not used: it is for {' and '.join(users)}{hint.get(field, '')}"
        for field, users in _ONLY.items()
        if own not in users and field in data and data[field] != usual[field]
    ]


def _refuse_unused(data: ConfigDict, name: str, module: Any) -> None:
    """Raise `UserError` if the config says something of the images that this source does not read.

    A source of the user's own that does not list what it `READS` may read everything.
    """
    reads = getattr(module, "READS", SAYS)
    for field in SAYS:
        if data.get(field, "") and field not in reads:
            others = lookup.modules_with("data", "READS").items()
            users = sorted({USUAL.get(other, other) for other, source in others if field in source.READS})
            why = f": {INSTEAD[name]}" if name in INSTEAD else ""
            raise UserError(
                f"config.data.{field}={data[field]!r} is not used by config.data.name={name}{why}. "
                f"Sources that use it: {', '.join(users)}"
            )


def name_used(config: ConfigDict) -> str:
    """`config.data.name`, or "dicom" where it names a kind of folder and most files of the folder are DICOM."""
    name = config.data.name
    return FOLDERS[name] if name in FOLDERS and _holds_dicom(str(config.data.root)) else name


def _holds_dicom(root: str) -> bool:
    """Whether `root` is one folder in which most files are DICOM."""
    folder = Path(_without_modality(root)).expanduser()
    if not root or not folder.is_dir() or (folder / "manifest.csv").exists():
        return False
    return dicom.most_are_dicom(folder)


def _without_modality(root: str) -> str:
    """The folder of "folder=ct". The modality of a DICOM series is in its header."""
    path, _, modality = root.rpartition("=")
    return path if path and modality.strip().lower() in ("ct", "mr", "mri") else root


def build_index(
    config: ConfigDict,
    cache: Path | None = None,
    split: str | None = None,
    *,
    progress: Progress | None = None,
    source: Source | None = None,
    check: str = "",
    masks: bool = False,
) -> data_index.Index:
    """Run the pre-flight check on the training images.

    cache: JSON file that stores the result; every process needs one of its own.
    split: check the images of this split instead.
    progress: called with the number of checked images and the number of all images.
    source: check the images of this source instead.
    check: replaces `config.data.check`.
    masks: read the masks too.
    """
    data = config.data
    whole = split is not None or source is not None
    source = load_source(config, split) if source is None else source
    data_index.require_some(source, str(data.root))
    return data_index.build(
        source,
        check=check or data.check,
        max_bad_fraction=data.max_bad_fraction,
        fraction=1.0 if whole else data.fraction,
        seed=config.seed,
        num_threads=data.num_threads,
        cache=cache,
        settings=repr((*decoding(config), config.model.in_chans)),
        progress=progress,
        masks=masks,
    )
