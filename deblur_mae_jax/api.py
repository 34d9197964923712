"""The Python interface: functions from arrays to arrays, available through `import deblur_mae_jax as dm`.

    trained = dm.load("runs/d2mae")               # also: model, params, info = dm.load(...)
    dm.degrade("blur.gaussian(sigma=1.1)")(images)
    dm.reconstruct(trained, images, mask_ratio=0.75, level=3)
    dm.search_blur(trained, images).best_sigma
    dm.prepare(trained, images), dm.encode(trained, images)
    dm.predict(dm.load("runs/classifier"), images)
    dm.segment(dm.load("runs/segmenter"), images)
    dm.export_to_pytorch("runs/d2mae")            # or another format, such as "timm"
    dm.pack("/my/images", "/data/packed")         # then: --config.data.name=packed --config.data.root=/data/packed

Images are an array `(N, H, W)`, `(N, H, W, 1)` or `(N, H, W, 3)`, a single image without the axis N, or an
iterable of images of different sizes. Values are uint8, or float between 0 and 1. There may be any number of images.
Those that are larger than the run allows (`config.data.max_side`) are shrunk, as the run shrinks its files.
An array `(3, H, W)` is three gray images.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from deblur_mae_jax import sharding
from deblur_mae_jax.data import grid, packing, source_config
from deblur_mae_jax.degradations import parse
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.inference import blur_search
from deblur_mae_jax.inference import levels as blur_levels
from deblur_mae_jax.inference.arrays import as_list, batches, probabilities_of, shrunk, volumes_of
from deblur_mae_jax.inference.segmenter import Segmenter
from deblur_mae_jax.input_pipeline.keys import evaluation_keys, stream_keys
from deblur_mae_jax.models import masking
from deblur_mae_jax.network import Network, need_images
from deblur_mae_jax.performance import compile_cache
from deblur_mae_jax.pretrained import trained_network
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.tasks import losses

BATCH = blur_levels.BATCH
Images = Any  # an array, or an iterable of arrays
Ready = list[np.ndarray]  # from `as_list`


def load(run_or_file: str | Path, **known: Any) -> TrainedNetwork:
    """Load a trained network onto the device. Raises `UserError`.

    Compiled programs are kept where the run keeps its own (`config.compilation_cache`), unless JAX has a cache folder.

    run_or_file: workdir of a run, whose best weights are loaded, or a weight file of a known format. What is assumed of
        a file that other code wrote, such as its normalisation, is logged as a warning.
    known: what such a file does not record, by the last part of the name of the config field: `num_heads=6`,
        `merge_order="monai15"`, `degrade="blur.gaussian(sigma=1.1)"`, `mean=(0.5,), std=(0.5,)`.
    """
    trained = trained_network.load(run_or_file, "run", known)
    for note in trained.notes:
        logging.warning("%s: %s", run_or_file, note)
    compile_cache.use(trained.config.compilation_cache)
    return trained.with_params(jax.device_put(trained.params))


def _run(
    trained: TrainedNetwork, images: Images, level: Any, program: Any, batch: int, canvas: tuple[int, ...] | None = None
) -> Any:
    """Run `program(params, examples, start)` on batches of the images and concatenate the results.

    start: index of the first image of the batch.
    """
    need_images(trained.network.identity, trained.path)
    if batch != int(batch) or batch < 1:
        raise UserError(f"batch={batch} must be a whole number of images, at least 1")
    ready = _as_read(trained, images)
    levels = blur_levels.given(trained, ready, level)
    results = []
    for start, count, examples in batches(ready, trained.network.inputs.in_chans, batch, canvas):
        if levels is not None:
            batch_levels = levels[start : start + count]
            pad = len(examples["size"]) - count
            examples["level"] = np.concatenate([batch_levels, np.repeat(batch_levels[-1:], pad)]).astype(np.int32)
        out = program(trained.params, examples, jnp.int32(start))
        results.append(jax.tree.map(lambda x, n=count: np.asarray(x)[:n], out))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *results)


def _as_read(trained: TrainedNetwork, images: Images) -> Ready:
    """Checked images, of the size that the run reads them in."""
    return [shrunk(image, trained.config.data.max_side) for image in as_list(images)]


def _view(network: Network, examples: Any, start: jax.Array) -> tuple[Any, Any]:
    """Network inputs of the view on which the network is judged, and random keys.

    The keys depend on the index of each image alone. A random degradation draws the same for every image, so that its
    input does not depend on the images before it.
    """
    count = examples["size"].shape[0]
    keys = evaluation_keys(start + jnp.arange(count))
    same = evaluation_keys(jnp.zeros(count, int))
    # A segmenter sees the whole image.
    view = network.inputs.whole if network.kind == "segment" else network.inputs.evaluate
    return view(examples, same), keys


def prepare(trained: TrainedNetwork, images: Images, *, level: Any = None, batch: int = BATCH) -> np.ndarray:
    """The network's inputs: degraded, resized, cropped and normalised views `(N, H, W, C)` float32.

    level: blur level, as for `encode`.
    batch: images per forward pass.
    """

    def program(params, examples, start):
        return _view(trained.network, examples, start)[0]["inputs"]

    return _run(trained, images, level, trained.jitted("prepare", program), batch)


def encode(
    trained: TrainedNetwork,
    images: Images,
    *,
    level: Any = None,
    pool: str = "mean",
    batch: int = BATCH,
) -> np.ndarray:
    """Features of the central view `(N, D)`, or all tokens `(N, L, D)`. The images are degraded as in training.

    level: blur level, for networks with levels; one number, or one per image. `None` searches the best level.
    pool: "mean" of the patch tokens, "cls", or "none" for all tokens. A network without a decoder ignores `pool` and
        returns the input of its head.
    batch: images per forward pass.
    """
    if pool not in ("mean", "cls", "none"):
        raise UserError(f"pool='{pool}'. Choices: mean, cls, none.")
    network = trained.network
    options = {"pool": pool} if network.kind == "reconstruct" else {}

    def features(params, examples, start):
        data, _ = _view(network, examples, start)
        return network.model.apply(
            {"params": params},
            data["inputs"],
            level=data.get("level"),
            method=network.model.features,
            **options,
        )

    return _run(trained, images, level, trained.jitted(f"encode {pool}", features), batch)


def reconstruct(
    trained: TrainedNetwork,
    images: Images,
    *,
    mask_ratio: float = 0.75,
    level: Any = 1,
    seed: int = 0,
    batch: int = BATCH,
) -> dict[str, np.ndarray]:
    """Degrade and mask images, and reconstruct them.

    mask_ratio: share of the patches that are masked, in [0, 1).
    level: blur level, as for `encode`.
    seed: seed of the masks.
    batch: images per forward pass.

    Returns a dict of gray levels 0..255 `(N, H, W, C)` of the central view, `clean`, `degraded`, `masked` (masked
    patches in gray) and `reconstructed`, with `mask` `(N, L)`, 1 for masked patches. A network that predicts normalised
    patches (`task.norm_pix_loss`) is given the true mean and deviation of every patch, also of the masked ones.
    """
    blur_levels.need_decoder(trained, "reconstruct")
    network = trained.network
    model, inputs = network.model, network.inputs
    if not 0 <= mask_ratio < 1 or masking.num_kept(math.prod(model.mask_grid), mask_ratio) < 1:
        raise UserError(f"mask_ratio={mask_ratio} must be in [0, 1) and leave a patch visible")

    def program(params, examples, start):
        data, keys = _view(network, examples, start)
        keys = stream_keys(seed, 0, start + jnp.arange(examples["size"].shape[0]))["mask"]
        noise = jax.vmap(lambda key: jax.random.uniform(key, (math.prod(model.mask_grid),)))(keys)
        pred, out = model.apply(
            {"params": params},
            data["inputs"],
            noise=noise,
            mask_ratio=mask_ratio,
            level=data.get("level"),
        )
        goal = masking.patchify(data["targets"], model.mask_size)
        if network.task.norm_pix_loss:
            pred = losses.denormalise_patches(pred, goal)
        degraded = inputs.gray_levels(data["inputs"])
        shown = masking.patchify(degraded, model.mask_size)
        hidden = jnp.where(out["mask"][..., None] > 0, 128.0, shown)
        return {
            "clean": inputs.gray_levels(data["targets"]),
            "degraded": degraded,
            "masked": masking.unpatchify(hidden, model.mask_size, model.in_chans, model.mask_grid),
            "reconstructed": inputs.gray_levels(
                masking.unpatchify(pred, model.mask_size, model.in_chans, model.mask_grid)
            ),
            "mask": out["mask"],
        }

    jitted = trained.jitted(f"reconstruct {mask_ratio} {seed}", program)
    if not inputs.degradation.num_levels and np.all(np.asarray(level) == 1):  # the default
        level = None
    return _run(trained, images, level, jitted, batch)


def search_blur(
    trained: TrainedNetwork, images: Images, *, step: int = 2, high_pass: float = 0.0, batch: int = BATCH
) -> blur_search.Table:
    """Optimal blurriness search (D2MAE, eq. 4 and 5).

    step: distance between the levels that are tried.
    high_pass: sigma, pixels of the network's input; only what a Gaussian blur of this sigma removes from the error
        counts. 0: the whole error.
    batch: the network receives twice as many blurred images at once; every image is blurred to T levels.

    Returns a `Table` with `best` and `best_sigma` `(N,)`, and `losses` `(N, T)`. For a classifier, the search uses the
    network that it was fine-tuned from.
    """
    return blur_levels.search(trained, _as_read(trained, images), step, batch, high_pass)


def predict(
    trained: TrainedNetwork,
    images: Images,
    *,
    level: Any = None,
    batch: int = BATCH,
    canvas: tuple[int, ...] | None = None,
) -> np.ndarray:
    """Class probabilities `(N, K)` in the order of `trained.classes`.

    level: blur level. `None`: found according to the run's own setting (a search, for D2MAE).
    batch: images per forward pass.
    canvas: height and width to which images are padded, without an effect on the results; several calls with the same
        canvas and as many images compile once. `None`: those of the largest image.
    """
    network = trained.network
    if network.kind == "segment":
        raise UserError(f"predict: '{trained.path}' segments; use dm.segment")
    if not trained.classes:
        raise UserError(f"predict: '{trained.path}' is not a classifier; fine-tune it first")

    def program(params, examples, start):
        data, _ = _view(network, examples, start)
        return network.model.apply({"params": params}, data["inputs"], level=data.get("level"))[0]

    return probabilities_of(_run(trained, images, level, trained.jitted("predict", program), batch, canvas))


def segment(trained: TrainedNetwork, images: Images, *, level: Any = None, **infer: Any) -> list[np.ndarray]:
    """The class of every pixel or voxel, uint8 `(*space)`; values are indices into `trained.classes`.

    images: 2-D images as for `predict`, or volumes as float arrays `(D, H, W)` in RAS orientation, scaled as in
        training (CT: the window mapped to 0..1; MR: standardised over the non-zero voxels), and with voxels of
        `config.data.spacing` if the run has one.
    level: blur level, for networks with levels.
    infer: fields of `config.infer`, such as `flips=True`.
    """
    network = trained.network
    if network.kind != "segment":
        raise UserError(f"segment: '{trained.path}' is not a segmentation run")
    strange = sorted(set(infer) - set(trained.config.infer))
    if strange:
        raise UserError(f"segment: no field '{strange[0]}'. Choices: {', '.join(trained.config.infer)}")
    fields = ConfigDict(trained.config.infer.to_dict() | infer)
    name = f"segmenter {sorted(fields.items())}"
    if name not in trained.programs:  # a segmenter keeps its compiled programs
        trained.programs[name] = Segmenter(network, sharding.make_mesh(), fields)
    segmenter = trained.programs[name]
    if network.axes == 3:
        if level is not None:
            raise UserError(f"segment: level={level}, but networks for volumes have no levels")
        return [segmenter.of_volume([trained.params], v[..., None]) for v in volumes_of(images)]
    as_given = as_list(images)
    sizes = [image.shape[:2] for image in as_given]
    ready = _as_read(trained, as_given)
    levels = blur_levels.given(trained, ready, level)
    out: list[np.ndarray] = []
    for start, count, examples in batches(ready, network.inputs.in_chans, segmenter.batch_size):
        rows = [{k: v[i] for k, v in examples.items()} for i in range(count)]
        for i, row in enumerate(rows):
            if levels is not None:
                row["level"] = np.int32(levels[start + i])
        out += segmenter.of_images([trained.params], rows)
    return [grid.enlarged(labels, size) for labels, size in zip(out, sizes, strict=True)]


def degrade(spec: str) -> Callable[..., Any]:
    """Build a function that degrades images, such as `degrade("blur.gaussian(sigma=1.1)")`.

    spec: a degradation by name, as in `config.task.degrade`: "blur.gaussian(sigma=1.1)", "speckle.srad(40, 0.1)",
        "noise.gaussian_noise(0.25)"; several are joined with "|".

    The function takes the images and two keywords:
    level: blur level, if the degradation has levels.
    seed: seed of a random degradation.
    It returns float32 gray levels in 0..255: an array `(N, H, W, C)`, or a list if the sizes of the images differ.
    """
    degradation = parse.degradation(spec, "degrade")

    def stacked(ready: Ready, level: Any, seed: int, first: int = 0) -> np.ndarray:
        images = jnp.asarray(np.stack(ready), jnp.float32)
        if level is not None:
            assert degradation.at_level is not None
            every = jnp.broadcast_to(jnp.asarray(level, jnp.int32), (len(ready),))
            params = jax.vmap(degradation.at_level)(every)
        else:
            keys = stream_keys(seed, 0, first + jnp.arange(len(ready)))["degrade"]
            params = jax.vmap(degradation.draw)(keys)
        return np.asarray(jax.vmap(lambda x, p: degradation.apply(x, p, None))(images, params))

    def apply(images: Images, *, level: Any = None, seed: int = 0) -> Any:
        ready = as_list(images)
        if level is not None:
            if degradation.at_level is None:
                raise UserError(f"degrade: '{spec}' has no levels")
            level = blur_levels.checked(level, degradation.num_levels, len(ready))
        if len({image.shape for image in ready}) == 1:
            return stacked(ready, level, seed)
        levels = [None] * len(ready) if level is None else np.broadcast_to(level, (len(ready),))
        return [stacked([image], levels[i], seed, i)[0] for i, image in enumerate(ready)]

    return apply


def pack(
    source: str | Path,
    out: str | Path,
    *,
    name: str = "",
    encode: str = "keep",
    shard_mb: int = 512,
    workers: int = 1,
    licence: str = "",
    **fields: Any,
) -> packing.Packed:
    """Pack a data set into shards with an index, from which a run starts without listing or decoding anything.

    source: a folder, a CSV, tars or Parquet files of images, or DICOM files; for volumes with the modality, "/x=ct".
    out: folder of the packed set.
    name: `config.data.name`, if it cannot be seen from `source`.
    encode: "keep" (the bytes of image files; other images losslessly), "png", "jpeg95" or "raw".
    shard_mb: approximate size of a shard, 10^6 bytes.
    workers: processes.
    licence: text that is kept with the set.
    fields: fields of `config.data`, such as `max_side=512`; `channels=3` for colours.

    Raises `UserError`. A run reads the set with `--config.data.name=packed --config.data.root=OUT`.
    """
    config = source_config.config_for(str(source), name, **fields)
    return packing.pack(config, out, encode=encode, shard_mb=shard_mb, workers=workers, licence=licence)
