"""The Python interface: arrays in, arrays out. `import deblur_mae_jax as dm` has all of it.

    trained = dm.load("runs/d2mae")               # also: model, params, info = dm.load(...)
    dm.degrade("blur.gaussian(sigma=1.1)")(images)
    dm.reconstruct(trained, images, mask_ratio=0.75, level=3)
    dm.search_blur(trained, images).best_sigma
    dm.prepare(trained, images), dm.encode(trained, images)
    dm.predict(dm.load("runs/classifier"), images)
    dm.segment(dm.load("runs/segmenter"), images)

Images are one array `(N, H, W)`, `(N, H, W, 1)` or `(N, H, W, 3)`, one image without N, or a list of
images of different sizes; uint8, or float between 0 and 1. Any number of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from deblur_mae_jax import (
    blur_search,
    lookup,
    losses,
    masking,
    pretrained,
    transfer,
    views,
)
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.evaluators.predictions import probabilities_of
from deblur_mae_jax.inputs import stream_keys
from deblur_mae_jax.network import kind, need_pictures, num_axes

BATCH = 32
Images = Any  # an array or a list of arrays


@dataclasses.dataclass
class Info:
    """What is known of a loaded network. classes: names, for a classifier or a segmentation (background first);
    mask_values: of each class in mask files; searcher: the pre-training network that finds the blur of images."""

    path: Path
    config: Any
    classes: list[str]
    network: Any
    searcher: Trained | None = None
    mask_values: list[int] = dataclasses.field(default_factory=list)
    programs: dict[str, Any] = dataclasses.field(default_factory=dict)

    def jitted(self, name: str, function: Callable) -> Any:
        """`jax.jit(function)`, made once."""
        if name not in self.programs:
            self.programs[name] = jax.jit(function)
        return self.programs[name]


class Trained(NamedTuple):
    """A network that was loaded."""

    model: Any
    params: Any
    info: Info


def load(run_or_file: str | Path) -> Trained:
    """A run's workdir (its best weights), or weights of ours, MAE, timm or Hugging Face. Raises `UserError`."""
    return of(pretrained.load(run_or_file, "run"))


def of(found: pretrained.Pretrained) -> Trained:
    """The same from what was loaded before."""
    searcher = None
    copy = transfer.copy_of_source(found.path)
    if found.classes and copy is not None and num_axes(found.config) == 2:
        searcher = load(copy)
    values = found.mask_values
    info = Info(found.path, found.config, found.classes, found.network, searcher, values)
    return Trained(found.network.model, jax.tree.map(jnp.asarray, found.params), info)


class _Ready(list):
    """Images that were checked: `(H, W, C)`, grey levels."""


def as_list(images: Images) -> _Ready:
    """Images, checked: `(H, W, C)`, uint8 or grey levels."""
    if isinstance(images, _Ready):
        return images
    if not isinstance(images, (list, tuple)):
        array = np.asarray(images)
        single = array.ndim == 2 or (
            array.ndim == 3 and array.shape[-1] in (1, 3) and array.shape[0] > 3
        )
        images = [array] if single else list(array)
    out = _Ready()
    for number, image in enumerate(images):
        image = np.asarray(image)
        image = image[:, :, None] if image.ndim == 2 else image
        if image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
            raise UserError(
                f"images: image {number} has shape {image.shape}; expected (H, W), (H, W, 1) or (H, W, 3)"
            )
        if image.dtype == bool or not (
            image.dtype == np.uint8 or np.issubdtype(image.dtype, np.floating)
        ):
            raise UserError(
                f"images: image {number} is {image.dtype}; expected uint8, or float in 0..1"
            )
        if image.dtype != np.uint8:
            low, high = float(np.min(image)), float(np.max(image))
            if not (low >= 0 and high <= 1):  # also catches NaN
                raise UserError(
                    f"images: image {number} has values from {low:g} to {high:g}; float images must "
                    "lie in 0..1, or be uint8"
                )
            image = image.astype(np.float32) * 255.0
        out.append(image)
    if not out:
        raise UserError("images: there are none")
    return out


def _channels(image: np.ndarray, channels: int) -> np.ndarray:
    if image.shape[2] == channels:
        return image
    if channels == 3:
        return np.repeat(image, 3, axis=2)
    if image.dtype == np.uint8:  # as the images of a run are read
        return np.asarray(Image.fromarray(image).convert("L"))[:, :, None]
    return image @ np.array([[0.299], [0.587], [0.114]], np.float32)


def batches(images: Images, channels: int, batch: int):
    """Examples of `batch` images on one canvas, the last batch filled up; and how many are real."""
    ready = [_channels(image, channels) for image in as_list(images)]
    height = max(image.shape[0] for image in ready)
    width = max(image.shape[1] for image in ready)
    kind = np.uint8 if all(image.dtype == np.uint8 for image in ready) else np.float32
    batch = min(batch, len(ready))
    for start in range(0, len(ready), batch):
        part = ready[start : start + batch]
        canvas = np.zeros((batch, height, width, channels), kind)
        sizes = np.ones((batch, 2), np.int32)
        for i in range(batch):
            image = part[min(i, len(part) - 1)]
            canvas[i, : image.shape[0], : image.shape[1]] = image
            sizes[i] = image.shape[:2]
        yield start, len(part), {"image": canvas, "size": sizes}


def given_levels(trained: Trained, images: Images, level: Any, count: int) -> np.ndarray | None:
    """The level of every image: given, or searched; `None` for networks without levels."""
    degradation = trained.info.network.inputs.degradation
    if not degradation.num_levels:
        if level is not None:
            raise UserError(
                f"level={level}: the network was trained with "
                f"'{trained.info.config.task.degrade}', which has no levels"
            )
        return None
    if level is None and trained.info.classes:
        level = levels_for(trained, images)
    if level is None:
        return search_blur(trained, images).best
    values = np.broadcast_to(np.asarray(level, np.int32), (count,))
    if values.min() < 1 or values.max() > degradation.num_levels:
        raise UserError(f"level={level} must be in 1..{degradation.num_levels}")
    return values


def _run(trained: Trained, images: Images, level: Any, program: Any, batch: int) -> Any:
    """`program(params, batch of network inputs, keys)` over all images, results concatenated."""
    need_pictures(trained.info.config, trained.info.path)
    images = as_list(images)
    network = trained.info.network
    levels = given_levels(trained, images, level, len(images))
    found = []
    for start, count, examples in batches(images, network.inputs.in_chans, batch):
        if levels is not None:
            own = levels[start : start + count]
            pad = len(examples["size"]) - count
            examples["level"] = np.concatenate([own, np.repeat(own[-1:], pad)]).astype(np.int32)
        out = program(trained.params, examples, jnp.int32(start))
        found.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], out))
    return jax.tree.map(lambda *parts: np.concatenate(parts), *found)


def _view(network: Any, examples: Any, start: jax.Array) -> tuple[Any, Any]:
    """Network inputs of the central view, and keys that depend on the place of an image only."""
    keys = stream_keys(0, 0, start + jnp.arange(examples["size"].shape[0]))
    return network.inputs.evaluate(examples, keys), keys


def prepare(
    trained: Trained, images: Images, *, level: Any = None, batch: int = BATCH
) -> np.ndarray:
    """What the network sees: the degraded, resized, cropped and normalised view `(N, S, S, C)` float32.

    level: as for `encode`.
    """

    def program(params, examples, start):
        return _view(trained.info.network, examples, start)[0]["inputs"]

    return _run(trained, images, level, trained.info.jitted("prepare", program), batch)


def encode(
    trained: Trained, images: Images, *, level: Any = None, pool: str = "mean", batch: int = BATCH
) -> np.ndarray:
    """Features of the central view `(N, D)`, or all tokens `(N, L, D)`.

    The images are degraded as the network was trained. level: of the blur, for networks with levels; one
    number or one per image, `None` searches the best. pool: "mean" of the patch tokens, "cls", or "none".
    A network without a decoder gives what its head sees, whatever `pool` says.
    """
    if pool not in ("mean", "cls", "none"):
        raise UserError(f"pool='{pool}'. Choices: mean, cls, none.")
    network = trained.info.network
    model = network.model

    def features(params, examples, start):
        data, _ = _view(network, examples, start)
        whole = not hasattr(model, "decode")
        method = model.features if whole else model.encode
        arguments = (data["inputs"],) if whole else (data["inputs"], None)
        x = model.apply({"params": params}, *arguments, data.get("level"), method=method)
        if whole or pool == "none":
            return x.astype(jnp.float32)
        x = x.astype(jnp.float32)
        return x[:, model.num_prefix :].mean(axis=1) if pool == "mean" else x[:, 0]

    program = trained.info.jitted(f"encode {pool}", features)
    return _run(trained, images, level, program, batch)


def _need_decoder(trained: Trained, what: str) -> None:
    need_pictures(trained.info.config, trained.info.path)
    if not hasattr(trained.model, "decode"):
        raise UserError(
            f"{what}: '{trained.info.path}' has no decoder; load a pre-training run, not a classifier"
        )


def reconstruct(
    trained: Trained,
    images: Images,
    *,
    mask_ratio: float = 0.75,
    level: Any = 1,
    seed: int = 0,
    batch: int = BATCH,
) -> dict[str, np.ndarray]:
    """What the network makes of degraded and masked images.

    Returns grey levels 0..255 `(N, S, S, C)`: `clean` and `degraded` central views, `masked` (hidden
    patches gray), `reconstructed`; and `mask` `(N, L)`, 1 where hidden.
    """
    _need_decoder(trained, "reconstruct")
    network = trained.info.network
    model, inputs = network.model, network.inputs
    if not 0 <= mask_ratio < 1 or masking.num_kept(model.grid**2, mask_ratio) < 1:
        raise UserError(f"mask_ratio={mask_ratio} must be in [0, 1) and leave a patch visible")
    mean, std = jnp.asarray(inputs.mean), jnp.asarray(inputs.std)
    norm = trained.info.config.task.norm_pix_loss

    def grey(images):
        return jnp.clip(views.denormalise(images, mean, std), 0, 255)

    def program(params, examples, start):
        data, _ = _view(network, examples, start)
        keys = stream_keys(seed, 0, start + jnp.arange(examples["size"].shape[0]))["mask"]
        noise = jax.vmap(lambda key: jax.random.uniform(key, (model.grid**2,)))(keys)
        pred, out = model.apply(
            {"params": params}, data["inputs"], noise, mask_ratio, data.get("level")
        )
        goal = masking.patchify(data["targets"], model.patch_size)
        if norm:  # the network predicts normalised patches; undo it with the true statistics
            average, spread = losses.patch_statistics(goal)
            pred = pred * spread + average
        degraded = grey(data["inputs"])
        shown = masking.patchify(degraded, model.patch_size)
        hidden = jnp.where(out["mask"][..., None] > 0, 128.0, shown)
        return {
            "clean": grey(data["targets"]),
            "degraded": degraded,
            "masked": masking.unpatchify(hidden, model.patch_size, model.in_chans),
            "reconstructed": grey(masking.unpatchify(pred, model.patch_size, model.in_chans)),
            "mask": out["mask"],
        }

    jitted = trained.info.jitted(f"reconstruct {mask_ratio} {seed}", program)
    if not network.inputs.degradation.num_levels:
        level = None
    return _run(trained, images, level, jitted, batch)


def search_blur(
    trained: Trained, images: Images, *, step: int = 2, batch: int = BATCH
) -> blur_search.Table:
    """Optimal blurriness search (D2MAE, eq. 4 and 5): `best`, `best_sigma` `(N,)`, `losses` `(N, T)`.

    A classifier searches with the network it was fine-tuned from.
    """
    if not hasattr(trained.model, "decode") and trained.info.searcher is not None:
        trained = trained.info.searcher
    _need_decoder(trained, "search_blur")
    network, config = trained.info.network, trained.info.config
    degradation = network.inputs.degradation
    if not degradation.num_levels or degradation.at_level is None:
        raise UserError(
            f"search_blur: the network was trained with '{config.task.degrade}', which has no levels"
        )
    if not 1 <= step <= degradation.num_levels:
        raise UserError(f"step={step} must be in 1..{degradation.num_levels}")
    levels = blur_search.candidates(degradation.num_levels, step)
    errors = blur_search.make_losses(
        network.model, network.inputs, levels, config.task.norm_pix_loss
    )

    def program(params, examples):
        return errors(params, examples, *network.inputs.central(examples))

    jitted = trained.info.jitted(f"search {step}", program)
    share = max(1, 2 * batch // len(levels))
    rows = [
        np.asarray(jitted(trained.params, examples))[:count]
        for _, count, examples in batches(images, network.inputs.in_chans, share)
    ]
    table = np.concatenate(rows)
    names = [f"image {i}" for i in range(len(table))]
    return blur_search.Table(names, levels, blur_search.sigmas(degradation, levels), table)


def predict(
    trained: Trained, images: Images, *, level: Any = None, batch: int = BATCH
) -> np.ndarray:
    """Class probabilities `(N, C)` in the order of `trained.info.classes`.

    level: as the run's own setting finds it, if `None` (a search, for D2MAE).
    """
    info = trained.info
    if kind(info.config) == "segment":
        raise UserError(f"predict: '{info.path}' segments; use dm.segment")
    if not info.classes:
        raise UserError(f"predict: '{info.path}' is no classifier; fine-tune it first")
    network = info.network

    def program(params, examples, start):
        data, _ = _view(network, examples, start)
        return network.model.apply({"params": params}, data["inputs"], data.get("level"))[0]

    return probabilities_of(_run(trained, images, level, info.jitted("predict", program), batch))


def levels_for(trained: Trained, images: Sequence[np.ndarray]) -> np.ndarray | None:
    """The level of blur of new images, found as `config.search.setting` of a classifier says."""
    info = trained.info
    degradation = info.network.inputs.degradation
    if not degradation.num_levels:
        return None
    can_search = info.searcher is not None and hasattr(info.searcher.model, "decode")
    setting = blur_search.parse(info.config.search.setting, degradation, can_search)
    if setting is None:
        return None
    if setting.kind == "oracle":
        raise UserError("search.setting=oracle needs the labels: it cannot predict new images")
    if setting.kind == "online":
        setting = blur_search.Setting("search", setting.value)
    levels, _ = blur_search.assign(
        setting,
        degradation,
        len(images),
        info.config.seed,
        lambda step: search_blur(trained, images, step=step),
    )
    return levels


def degrade(spec: str) -> Callable[..., np.ndarray]:
    """`degrade("blur.gaussian(sigma=1.1)")` is a function of images.

    It takes images, and `level` where the degradation has levels or `seed` where it draws, and returns
    grey levels, float32 in 0..255: an array `(N, H, W, C)`, or a list where the sizes differ.
    """
    degradation = lookup.degradation(spec, "degrade")

    def apply(images: Images, *, level: Any = None, seed: int = 0) -> Any:
        ready = as_list(images)
        if len({image.shape for image in ready}) > 1:
            levels = (
                np.broadcast_to(np.asarray(level), (len(ready),)) if level is not None else None
            )
            return [
                apply(
                    _Ready([image]), level=None if levels is None else int(levels[i]), seed=seed + i
                )[0]
                for i, image in enumerate(ready)
            ]
        stacked = jnp.asarray(np.stack(ready), jnp.float32)
        keys = stream_keys(seed, 0, jnp.arange(len(ready)))["degrade"]
        if level is not None:
            if degradation.at_level is None:
                raise UserError(f"degrade: '{spec}' has no levels")
            every = jnp.broadcast_to(jnp.asarray(level, jnp.int32), (len(ready),))
            params = jax.vmap(degradation.at_level)(every)
        else:
            params = jax.vmap(degradation.draw)(keys)
        return np.asarray(jax.vmap(lambda x, p: degradation.apply(x, p, None))(stacked, params))

    return apply
