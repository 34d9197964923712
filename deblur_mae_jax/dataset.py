"""The images that a config names, and the pre-flight index of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax
from ml_collections import ConfigDict

from deblur_mae_jax import lookup
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.source import Source

Progress = Callable[[int, int], None]


def load_source(config: ConfigDict, split: str | None = None) -> Source:
    """The images of `config.data`, or of another `split`."""
    data = config.data if split is None else ConfigDict({**config.data.to_dict(), "split": split})
    make_source = lookup.function("data", data.name, "source", "config.data.name")
    return make_source(data, config.model.in_chans)


def build_index(
    config: ConfigDict,
    folder: Path | None,
    split: str | None = None,
    progress: Progress | None = None,
    source: Source | None = None,
    check: str = "",
    masks: bool = False,
) -> data_index.Index:
    """Pre-flight check of the training images, of another `split`, or of a `source` made before.

    check: instead of `config.data.check`. masks: read the masks too.
    """
    data = config.data
    whole = split is not None or source is not None
    name = "index.json" if split is None else f"index_{split}.json"
    keys = ("max_pixels", "max_side", "min_side", "bits16", "spacing", "ct_window")
    settings = [data.get(k) for k in keys if k in data]
    return data_index.build(
        load_source(config, split) if source is None else source,
        check=check or data.check,
        max_bad_fraction=data.max_bad_fraction,
        fraction=1.0 if whole else data.fraction,
        seed=config.seed,
        num_threads=data.num_threads,
        cache=folder / name if folder is not None and jax.process_index() == 0 else None,
        settings=repr((*settings, config.model.in_chans)),
        progress=progress,
        masks=masks,
    )
