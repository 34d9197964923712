"""A linear probe without random crops: encode every image once, and train the classifier on its features."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deblur_mae_jax import sharding
from deblur_mae_jax.data.loader import Loader
from deblur_mae_jax.data.order import InOrder
from deblur_mae_jax.degradations import parse
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.input_pipeline import stores
from deblur_mae_jax.input_pipeline.keys import evaluation_keys
from deblur_mae_jax.network import Network
from deblur_mae_jax.training import stop
from deblur_mae_jax.training.supervision import Progress, Supervision

BATCH = 64


def wanted(config: ConfigDict, labels: Supervision, kind: str) -> bool:
    """Whether the run trains on cached features. Raises `UserError` if those of an image would differ between steps.

    kind: kind of the task.
    """
    if kind != "classify" or not config.task.cache_features:
        return False
    field = "config.task.cache_features=True"
    if not config.task.frozen:
        raise UserError(f"{field} needs config.task.frozen=True: the encoder of this run changes (see linear_probe.py)")
    for name in ("mixup", "cutmix"):
        if config.task[name]:
            raise UserError(f"{field}: config.task.{name}={config.task[name]} mixes images. Choices: 0")
    if labels.setting is not None and labels.setting.kind in ("online", "oracle"):
        raise UserError(
            f"{field}: config.search.setting={labels.setting.kind} chooses another level for each view. Choices: none, "
            "fixed(sigma), search(step), random"
        )
    if labels.levels is None and parse.degradation(config.task.degrade).random:
        raise UserError(
            f"{field}: config.task.degrade={config.task.degrade} draws another degradation for each view. "
            "Choices: none, or one that draws nothing"
        )
    for group, name, off in (
        ("augment", "rand_augment", "''"),
        ("augment", "erase_probability", 0),
        ("model", "drop_path", 0),
    ):
        value = config[group][name]
        if value:
            raise UserError(f"{field}: config.{group}.{name}={value} changes the features at every step. Use {off}")
    return True


class Encoded(Loader):
    """What a resident store reads in place of images: their features, each with a canvas of one pixel.

    rows: the image that was encoded for each image `(N,)`; another one where its file could not be read.
    features: `(N, D)` float32.
    """

    def __init__(self, loader: Loader, rows: np.ndarray, features: np.ndarray):
        index = dataclasses.replace(loader.index, sizes=np.ones_like(loader.index.sizes))
        super().__init__(index, loader.channels, loader.extras | {"features": features}, loader.split_numbers)
        self.rows, self.features = rows, features

    def read(self, number: int) -> tuple[int, np.ndarray, None]:
        """The row of the features, and a pixel for the image."""
        return int(self.rows[number]), np.zeros((1, 1, self.channels), self.index.source.dtype), None


def head_alone(network: Network, encoded: Encoded) -> Network:
    """The network with the operations of its head alone, forward and backward."""
    head = 6 * encoded.features.shape[1] * network.model.num_classes
    return dataclasses.replace(network, flops_per_image=head, forward_flops=head / 3)


def empty(
    config: ConfigDict, network: Network, loader: Loader, params: Any, mesh: Mesh, progress: Progress | None = None
) -> Encoded:
    """As `encode`, but all features are 0: to compile a step without encoding the images."""
    width = jax.eval_shape(lambda p: _features(network, p, *_one_image(network)), params).shape[-1]
    count = len(loader)
    return Encoded(loader, np.arange(count), np.zeros((count, width), np.float32))


def _one_image(network: Network) -> tuple[jax.Array, jax.Array]:
    inputs = network.inputs
    return jnp.zeros((1, *inputs.out, inputs.in_chans)), jnp.ones(1, jnp.int32)


def _features(network: Network, params: Any, images: jax.Array, level: jax.Array | None) -> jax.Array:
    return network.model.apply({"params": params}, images, level=level, method=network.model.features)


def encode(
    config: ConfigDict, network: Network, loader: Loader, params: Any, mesh: Mesh, progress: Progress | None = None
) -> Encoded:
    """Encode the central view of every image, at its blur level if it has one. Every process has all features.

    params: parameters of the network, whose encoder will not change.
    progress: called with the numbers of images that are done, and of all.
    """
    count, batch = len(loader), -(-BATCH // mesh.size) * mesh.size
    numbered = Loader(
        loader.index,
        loader.channels,
        loader.extras | {"row": np.arange(count, dtype=np.int32)},
        loader.split_numbers,
        loader.classes,
    )
    numbered.failed, numbered.reported = loader.failed, loader.reported  # the run's loader reports what cannot be read
    order = InOrder(np.arange(count), batch)
    inputs, threads = network.inputs, config.data.num_threads
    precompute = stores.on_host(inputs.precompute) if inputs.precomputes else None
    store = stores.Streaming(numbered, order, mesh, 1, precompute=precompute, num_threads=threads)

    def run(params, batch, first):
        examples = jax.tree.map(lambda x: x[0], batch)
        keys = evaluation_keys(first + jnp.arange(order.batch_size))
        view = inputs.evaluate(examples, keys)
        return _features(network, params, view["inputs"], view.get("level")), examples["row"]

    program = jax.jit(run, out_shardings=sharding.replicated(mesh))
    found, rows = [], []
    for number, examples in enumerate(store.in_order(order)):
        stop.poll()
        features, row = program(params, examples, jnp.int32(number * order.batch_size))
        found.append(np.asarray(features, np.float32))
        rows.append(np.asarray(row))
        if progress is not None:
            progress(min((number + 1) * order.batch_size, count), count)
    features, own = np.concatenate(found)[:count], np.concatenate(rows)[:count]
    by_row = np.zeros_like(features)
    by_row[own] = features
    return Encoded(loader, own, by_row)
