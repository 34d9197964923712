"""The blur levels of new images: given by the user, searched, or found as the run says."""

from __future__ import annotations

from typing import Any

import numpy as np

from deblur_mae_jax.errors import UserError
from deblur_mae_jax.inference import blur_search
from deblur_mae_jax.inference.arrays import batches
from deblur_mae_jax.network import need_images
from deblur_mae_jax.pretrained import trained_network
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.weight_formats import d2mae
from deblur_mae_jax.workdir.run_folder import Workdir

Ready = list[np.ndarray]
BATCH = 32  # images per forward pass


def given(
    trained: TrainedNetwork, ready: Ready, level: Any, canvas: tuple[int, ...] | None = None
) -> np.ndarray | None:
    """The blur level of every image `(N,)`, given by the user or found by search.

    Returns `None` for a network without levels.
    """
    degradation = trained.network.inputs.degradation
    if not degradation.num_levels:
        if level is not None:
            raise UserError(
                f"level={level}: the network was trained with '{trained.config.task.degrade}', which has no levels"
            )
        return None
    if level is None and trained.classes:
        level = of_run(trained, ready, canvas)
    if level is None:
        return search(trained, ready, canvas=canvas).best
    return checked(level, degradation.num_levels, len(ready))


def checked(level: Any, num_levels: int, count: int) -> np.ndarray:
    """Levels of the user for `count` images, `(count,)` int32. Raises `UserError`."""
    given = np.asarray(level)
    if given.shape not in ((), (count,)):
        raise UserError(f"level has shape {given.shape}; expected one number, or one for each of the {count} images")
    values = np.broadcast_to(given, (count,))
    if not np.issubdtype(given.dtype, np.number) or np.any(values != np.floor(values)):
        raise UserError(f"level={level} must be whole numbers")
    if values.min() < 1 or values.max() > num_levels:
        raise UserError(f"level={level} must be in 1..{num_levels}")
    return values.astype(np.int32)


def of_run(trained: TrainedNetwork, ready: Ready, canvas: tuple[int, ...] | None = None) -> np.ndarray | None:
    """The blur level of new images `(N,)`, found according to `config.search.setting` of a run with labels.

    Returns `None` for a network without levels.
    """
    degradation = trained.network.inputs.degradation
    if not degradation.num_levels:
        return None
    can_search = trained.searcher is not None
    if not can_search and searched(trained):
        raise UserError(
            f"'{trained.path}': the blur of its images is searched with the network that it started from, of which "
            f"there is no copy there ({Workdir(trained.path).pretrained_weights.parent.name}/ of a run, "
            f"{d2mae.SEARCHER[0]} beside a weight file)"
        )
    setting = blur_search.parse(trained.config.search.setting, degradation, can_search)
    if setting is None:
        return None
    if setting.kind == "oracle":
        raise UserError("search.setting=oracle needs the labels: it cannot predict new images")
    if setting.kind == "online":
        setting = blur_search.Setting("search", setting.value)
    levels, _ = blur_search.assign(
        setting,
        degradation,
        len(ready),
        trained.config.seed,
        lambda step: search(trained, ready, step, high_pass=trained.config.search.high_pass, canvas=canvas),
        ready,
    )
    return levels


def searched(trained: TrainedNetwork) -> bool:
    """Whether a labelled run, or one that was exported, searches the levels of its images.

    It may miss the network for it: then its own setting says so, or the network that it started from is not there.
    """
    setting = trained.config.search.setting
    if setting.startswith(("search", "online")):
        return True
    if trained.searcher is not None:
        return setting == "auto"
    is_run = Workdir(trained.path).config.exists()
    lost = bool(trained.config.init_from) and trained_network.copy_of_source(trained.path) is None
    return setting == "auto" and is_run and lost


def need_decoder(trained: TrainedNetwork, what: str) -> None:
    """Raise `UserError` if the network cannot reconstruct images."""
    need_images(trained.network.identity, trained.path)
    if trained.network.kind != "reconstruct":
        raise UserError(f"{what}: '{trained.path}' has no decoder; load a pre-training run, not a classifier")


def search(
    trained: TrainedNetwork,
    ready: Ready,
    step: int = 2,
    batch: int = BATCH,
    high_pass: float = 0.0,
    canvas: tuple[int, ...] | None = None,
) -> blur_search.Table:
    """Search the level of every image, with the network itself or the one that it started from."""
    searcher = trained.searcher
    if searcher is None:
        need_decoder(trained, "search_blur")
        raise UserError(
            f"search_blur: the network was trained with '{trained.config.task.degrade}', which has no levels"
        )
    network = searcher.network
    degradation = network.inputs.degradation
    if step != int(step) or not 1 <= step <= degradation.num_levels:
        raise UserError(f"step={step} must be a whole number in 1..{degradation.num_levels}")
    levels = blur_search.candidates(degradation.num_levels, step)
    errors = blur_search.make_losses(network.model, network.inputs, levels, network.task.norm_pix_loss, high_pass)

    def program(params, examples):
        return errors(params, examples, *network.inputs.central(examples))

    jitted = searcher.jitted(f"search {step} {high_pass:g}", program)
    share = max(1, 2 * batch // len(levels))
    rows = [
        np.asarray(jitted(searcher.params, examples))[:count]
        for _, count, examples in batches(ready, network.inputs.in_chans, share, canvas)
    ]
    table = np.concatenate(rows)
    names = [f"image {i}" for i in range(len(table))]
    return blur_search.Table(names, levels, blur_search.sigmas(degradation, levels), table)
