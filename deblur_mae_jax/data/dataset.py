"""Load the images that a config names, and build their pre-flight index."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ml_collections import ConfigDict

from deblur_mae_jax import lookup
from deblur_mae_jax.config import copy, decoding
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.source import Source

Progress = Callable[[int, int], None]


def load_source(config: ConfigDict, split: str | None = None) -> Source:
    """The images that `config.data` names. `split` replaces `config.data.split`."""
    data = config.data if split is None else copy(config.data, {"split": split})
    module = lookup.module("data", data.name, "source", "config.data.name")
    return module.source(data, config.model.in_chans)


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

    cache: JSON file that stores the result; only the main process may pass one.
    split: check the images of this split instead.
    progress: called with the number of checked images and the number of all images.
    source: check the images of this source instead.
    check: replaces `config.data.check`.
    masks: read the masks too.
    """
    data = config.data
    whole = split is not None or source is not None
    return data_index.build(
        load_source(config, split) if source is None else source,
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
