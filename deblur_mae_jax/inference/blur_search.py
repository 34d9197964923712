"""Optimal blurriness search (D2MAE, eq. 4 and 5, Algorithm 1): find the best blur level of every image.

For every image and every level t = 1, 1 + s, ... <= T, the search blurs the image, reconstructs it with
nothing masked, and compares the result with the original. t* is the level with the smallest error; at a
tie it is the smallest such level. The search needs no label, so it works the same for training, validation
and test images.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from deblur_mae_jax import sharding
from deblur_mae_jax.data.index import Index, pixel_hash
from deblur_mae_jax.data.loader import Loader
from deblur_mae_jax.data.order import InOrder
from deblur_mae_jax.degradations import blur
from deblur_mae_jax.degradations.contract import Degradation
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.inference import search_cache
from deblur_mae_jax.input_pipeline import stores
from deblur_mae_jax.input_pipeline.images import ImageInputs
from deblur_mae_jax.models import masking
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.tasks import losses

SETTINGS = ("auto", "none", "fixed(sigma)", "search(step)", "online(step)", "random", "oracle")
Show = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Setting:
    """How the blur level of an image is found.

    value: the step of a search, or the fixed sigma.
    """

    kind: str
    value: float = 0.0

    @property
    def step(self) -> int:
        """Step between the levels that are tried."""
        return int(self.value) if self.kind in ("search", "online") else 1


def parse(text: str, degradation: Degradation, can_search: bool = True) -> Setting | None:
    """Parse `config.search.setting`. Returns `None` if the degradation has no levels.

    "auto" means `search(2)`, as in the paper, if a network for the search is available; else it means `none`.
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(\s*(?:\w+\s*=\s*)?([\d.]+)\s*\))?\s*", text)
    kind, value = (match[1], match[2]) if match else (text, None)
    kinds = {"auto": None, "none": None, "fixed": 0.5, "search": 2, "online": 2, "random": None,
             "oracle": None}  # fmt: skip
    if kind not in kinds or (value is not None and kinds[kind] is None):
        raise UserError(f"config.search.setting='{text}' cannot be read. Choices: {', '.join(SETTINGS)}.")
    if not degradation.num_levels or degradation.at_level is None:
        if kind not in ("auto", "none"):
            raise UserError(
                f"config.search.setting={text} needs a degradation with levels, such as "
                "blur.gaussian_levels, in the network of config.init_from. Choices: auto, none."
            )
        return None
    if kind == "auto":
        kind, value = ("search", "2") if can_search else ("none", None)
    number = float(value) if value is not None else float(kinds[kind] or 0)
    if kind in ("search", "online"):
        if number != int(number) or not 1 <= number <= degradation.num_levels:
            raise UserError(
                f"config.search.setting={text}: the step must be a whole number from 1 to "
                f"{degradation.num_levels}, the number of levels"
            )
        if not can_search:
            raise UserError(
                f"config.search.setting={text} needs a pre-trained network that reconstructs whole images: set "
                "config.init_from to a run of D2MAE (a DiffMAE changes only what is masked)"
            )
    if kind == "fixed":
        level_of(number, degradation)
    return Setting(kind, number)


def candidates(num_levels: int, step: int) -> np.ndarray:
    """Levels 1, 1 + step, ... up to `num_levels`."""
    return np.arange(1, num_levels + 1, step, dtype=np.int32)


def sigmas(degradation: Degradation, levels: np.ndarray) -> np.ndarray:
    """Sigma of each level in pixels; NaN if the degradation has no sigma."""
    assert degradation.at_level is not None
    values = [degradation.at_level(jnp.int32(level)).get("sigma", jnp.nan) for level in levels]
    return np.round(np.array([float(f) for f in values]), 6)


def all_sigmas(degradation: Degradation) -> np.ndarray:
    """Sigma of levels 1, 2, ...; empty if the degradation has no levels."""
    if degradation.at_level is None:
        return np.empty(0)
    return sigmas(degradation, candidates(degradation.num_levels, 1))


def level_of(sigma: float, degradation: Degradation) -> int:
    """The level with this sigma. Raises `UserError` that lists the choices."""
    levels = candidates(degradation.num_levels, 1)
    choices = sigmas(degradation, levels)
    near = int(np.argmin(np.abs(choices - sigma)))
    if not abs(choices[near] - sigma) < 1e-3:
        raise UserError(
            f"config.search.setting: no level has sigma {sigma:g}. Choices: {', '.join(f'{c:g}' for c in choices)}"
        )
    return int(levels[near])


def check_high_pass(sigma: float) -> None:
    """Raise `UserError` if `config.search.high_pass` is not a sigma."""
    if not 0 <= sigma < np.inf:
        raise UserError(f"config.search.high_pass={sigma:g} must be 0 (off) or a sigma in pixels")


def make_losses(
    model: Any, inputs: ImageInputs, levels: np.ndarray, norm_pix_loss: bool = False, high_pass: float = 0.0
) -> Any:
    """Return `losses(params, examples, boxes, flips) -> (B, T)`, the error of every image at every level.

    The error is the mean squared difference between the unmasked reconstruction and the clean view, in network units.
    high_pass: sigma of a Gaussian blur, pixels of the view; only what this blur removes from the difference counts.
        0: the whole difference, as in Algorithm 1.
    """
    T = len(levels)
    check_high_pass(high_pass)

    def errors(params, examples, boxes, flips):
        degraded, clean = inputs.at_levels(examples, boxes, flips, jnp.asarray(levels))
        B = clean.shape[0]
        pred, _ = model.apply(
            {"params": params},
            degraded.reshape(B * T, *degraded.shape[2:]),
            level=jnp.tile(jnp.asarray(levels), B),
        )
        goal = masking.patchify(clean, model.mask_size)
        if norm_pix_loss:
            goal = losses.normalise_patches(goal)
        difference = pred.reshape(B, T, *pred.shape[1:]) - goal[:, None]
        if high_pass:
            grid = [side // model.mask_size for side in clean.shape[1:3]]
            flat = difference.reshape(B * T, *difference.shape[2:])
            images = masking.unpatchify(flat, model.mask_size, clean.shape[-1], tuple(grid))
            sharp = images - jax.vmap(functools.partial(blur.gaussian_blur, sigma=high_pass))(images)
            difference = sharp.reshape(B, T, -1, 1)
        return jnp.square(difference).mean(axis=(2, 3))

    return errors


def make_choose_level(
    model: Any, inputs: ImageInputs, levels: np.ndarray, norm_pix_loss: bool, high_pass: float = 0.0
) -> Any:
    """Return `choose(params) -> (examples, boxes, flips) -> levels (B,)`, for the search inside the step."""
    errors = make_losses(model, inputs, levels, norm_pix_loss, high_pass)

    def choose(params):
        def at(examples, boxes, flips):
            error = jax.lax.stop_gradient(errors(params, examples, boxes, flips))
            return jnp.asarray(levels)[jnp.argmin(error, axis=1)]

        return at

    return choose


@dataclasses.dataclass
class Table:
    """Result of a search.

    names: image names `(N,)`.
    levels, sigmas: the levels tried and their sigmas, `(T,)`.
    losses: error of every image at every level, `(N, T)`.
    searched: number of images searched in this run, without those found in the cache.
    seconds: time for the search of these images.
    """

    names: list[str]
    levels: np.ndarray
    sigmas: np.ndarray
    losses: np.ndarray
    searched: int = 0
    seconds: float = 0.0

    @property
    def best(self) -> np.ndarray:
        """t* of every image `(N,)`; at a tie the smallest level is chosen."""
        return self.levels[np.argmin(self.losses, axis=1)]

    @property
    def best_sigma(self) -> np.ndarray:
        """Sigma of t* `(N,)`."""
        return self.sigmas[np.argmin(self.losses, axis=1)]

    def write(self, path: Path, more: dict[str, list[str]] | None = None) -> None:
        """CSV: image, level, sigma, and the loss at every level.

        more: further columns with one text per image, such as its patient.
        """
        with open(path, "w", newline="", encoding="utf-8") as file:
            out = csv.writer(file)
            out.writerow(["image", "level", "sigma", *(f"loss_{level}" for level in self.levels), *(more or {})])
            rows = zip(self.names, self.best, self.best_sigma, self.losses, strict=True)
            for i, (name, level, sigma, row) in enumerate(rows):
                known = [values[i] for values in (more or {}).values()]
                out.writerow([name, level, f"{sigma:g}", *(f"{x:.9g}" for x in row), *known])


def search(
    trained: TrainedNetwork,
    index: Index,
    mesh: jax.sharding.Mesh,
    *,
    step: int = 2,
    high_pass: float = 0.0,
    batch_size: int = 64,
    cache: str = "auto",
    num_threads: int = 4,
    show: Show | None = None,
) -> Table:
    """Search every image of `index` with the pre-trained network `trained`.

    One jitted program runs over images and levels; the images are divided over the devices of `mesh`.

    step: step between the levels to try.
    high_pass: as in `make_losses`.
    batch_size: number of forward passes at once, images times levels.
    cache: folder of earlier results to reuse; "auto" is the user's cache folder, "" disables the cache.
    show: called with the number of images done and the total.
    """
    network, config = trained.network, trained.config
    degradation = network.inputs.degradation
    levels = candidates(degradation.num_levels, step)
    key = search_cache.cache_key(trained.weights_hash, _spec(trained, levels, high_pass))
    results = search_cache.Cache(cache, key, len(levels))
    sharding.require_same(data=index.fingerprint)  # each process reads its own share of the images
    hashes = [digest or pixel_hash(index.source.read(i)) for i, digest in enumerate(index.hashes)]
    missing = np.array([i for i, h in enumerate(hashes) if h not in results.known], np.int64)
    if jax.process_count() > 1:  # the first process alone writes the cache, so it decides
        flags = np.zeros(len(hashes), bool)
        flags[missing] = True
        missing = np.flatnonzero(multihost_utils.broadcast_one_to_all(flags))
    started = time.monotonic()
    if len(missing):
        share = max(1, batch_size // len(levels))
        B = min(-(-share // mesh.size), -(-len(missing) // mesh.size)) * mesh.size
        loader, order = Loader(index, config.model.in_chans), InOrder(missing, B)
        store = stores.Streaming(loader, order, mesh, 1, num_threads=num_threads)

        def keep(number: int, losses: jax.Array) -> None:
            rows, numbers = np.asarray(losses), missing[number * B : (number + 1) * B]
            readable = np.flatnonzero(~_lost(loader, [index.source.names[i] for i in numbers]))
            results.add([hashes[numbers[row]] for row in readable], rows[readable])
            if show is not None:
                show(number * B + len(numbers), len(missing))

        _run(trained, mesh, levels, high_pass, store.in_order(order), keep)
    seconds = time.monotonic() - started
    nothing = np.full(len(levels), np.nan, np.float32)
    table = np.stack([results.known.get(h, nothing) for h in hashes])
    if jax.process_count() > 1:
        table = np.asarray(multihost_utils.broadcast_one_to_all(table))
    return Table(index.source.names, levels, sigmas(degradation, levels), table, len(missing), seconds)


def _lost(loader: Loader, names: Sequence[str]) -> np.ndarray:
    """Whether another image replaced each of these, because it could no longer be read: its losses must not be used."""
    failed = {item.name for item in loader.failed}
    return sharding.on_any_process([name in failed for name in names])  # each process knows of those that it read


# Settings of a model that change how it is computed, not what.
_SAME_RESULT = ("attention", "remat")


def _spec(trained: TrainedNetwork, levels: np.ndarray, high_pass: float) -> dict[str, Any]:
    """Everything that the errors of an image depend on, except the weights and the image.

    The settings of the model count, because some change no shape, such as the number of heads.
    """
    config, inputs = trained.config, trained.network.inputs
    return {
        "model": {name: value for name, value in sorted(config.model.items()) if name not in _SAME_RESULT},
        "norm_pix_loss": trained.network.task.norm_pix_loss,
        "levels": levels.tolist(),
        "degrade": config.task.degrade,
        "site": config.task.blur_site,
        "size": config.image_size,
        "chans": config.model.in_chans,
        "mean": inputs.mean,
        "std": inputs.std,
        "dtype": str(trained.model.dtype),
        "backend": jax.default_backend(),
        "gray_target": inputs.gray_target,
    } | ({"high_pass": high_pass} if high_pass else {})


def _run(
    trained: TrainedNetwork,
    mesh: jax.sharding.Mesh,
    levels: np.ndarray,
    high_pass: float,
    batches: Iterable[Any],
    keep: Callable[[int, jax.Array], None],
) -> None:
    """Pass the errors of each batch to `keep(number, losses)`, one batch late, while the device computes the next."""
    network, everywhere = trained.network, sharding.replicated(mesh)
    errors = make_losses(network.model, network.inputs, levels, network.task.norm_pix_loss, high_pass)

    def step(params, batch):
        examples = jax.tree.map(lambda x: x[0], batch)
        return errors(params, examples, *network.inputs.central(examples))

    name = f"search a set {levels.tolist()} {high_pass:g}"
    program = trained.programs.setdefault(name, jax.jit(step, out_shardings=everywhere))
    params = jax.device_put(trained.params, everywhere)
    pending = None
    for number, batch in enumerate(batches):
        losses = program(params, batch)
        if pending is not None:
            keep(*pending)
        pending = number, losses
    if pending is not None:
        keep(*pending)


def assign(
    setting: Setting,
    degradation: Degradation,
    count: int,
    seed: int,
    run_search: Callable[[int], Table],
    pixels: Sequence[np.ndarray] | None = None,
) -> tuple[np.ndarray | None, Table | None]:
    """Return the level of every image `(count,)`, or `None` if the training step finds or draws it.

    Setting "none" is level 1. In the paper its sigma of 0.1 does not blur; in other ranges it may. Setting "random"
    draws one level per image, once: by its place in the set, or by its pixels if they are given.

    pixels: new images, of which a prediction sees a few at a time, in any order.
    """
    if setting.kind == "search":
        table = run_search(setting.step)
        return table.best.astype(np.int32), table
    if setting.kind == "none":
        return np.ones(count, np.int32), None
    if setting.kind == "fixed":
        return np.full(count, level_of(setting.value, degradation), np.int32), None
    if setting.kind == "random" and pixels is not None:
        codes = [int(pixel_hash(image), 16) % (1 << 40) for image in pixels]
        draws = [np.random.Generator(np.random.Philox(key=[seed, (1 << 41) + code])) for code in codes]
        return np.array([g.integers(1, degradation.num_levels + 1) for g in draws], np.int32), None
    if setting.kind == "random":
        generator = np.random.Generator(np.random.Philox(key=[seed, 1 << 41]))
        return generator.integers(1, degradation.num_levels + 1, count, dtype=np.int32), None
    return None, None
