"""Build a training run from its config: images, network, order, store, optimiser and step."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from deblur_mae_jax import config as fields
from deblur_mae_jax import network as networks
from deblur_mae_jax import sharding
from deblur_mae_jax.data import dataset
from deblur_mae_jax.data import index as data_index
from deblur_mae_jax.data.loader import Loader
from deblur_mae_jax.data.nifti import MODALITIES
from deblur_mae_jax.data.order import Order
from deblur_mae_jax.data.source import Skipped
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.input_pipeline import stores
from deblur_mae_jax.network import Identity, Network
from deblur_mae_jax.pretrained import warm_start
from deblur_mae_jax.pretrained.trained_network import TrainedNetwork
from deblur_mae_jax.sharding import Division
from deblur_mae_jax.tasks.contract import merged
from deblur_mae_jax.training import cached_features, checks, optimizer, schedule, stop, supervision, train_step
from deblur_mae_jax.training.schedule import Lengths
from deblur_mae_jax.training.supervision import Progress, Supervision
from deblur_mae_jax.training.train_step import TrainState
from deblur_mae_jax.workdir import run_folder
from deblur_mae_jax.workdir.run_folder import Workdir


@dataclasses.dataclass
class Experiment:
    """A run that is ready to start.

    arrays: arrays that stay on the devices: `images`, and `search`, the network of an online search.
    train_step: jitted function `(state, arrays, batch) -> (state, metrics)`.
    step_for: the same function for another division of the state, to compile it for devices that are not here.
    make_state: returns the state before the first step.
    state_shapes: the shapes of the state, and how it is divided among the devices.
    source: the network that the run starts from.
    supervision: classes, splits and blur levels of a run with labels.
    choose_level: the search inside the step, `params -> ChooseLevel`.
    notes: lines for the user that describe how the run was set up.
    skipped: files that are left out; files that cannot be read during training are added.
    encoded: the features of all images, if the run trains on these instead of on the images.
    starts_trained: whether every weight is taken from the source, also those of the head.
    """

    config: ConfigDict
    mesh: Mesh
    network: Network
    index: data_index.Index
    loader: Loader
    order: Order
    store: stores.Resident | stores.Streaming
    arrays: Any
    length: Lengths
    train_step: Any
    step_for: Callable[[Division], Any]
    make_state: Callable[[], TrainState]
    state_shapes: Any
    source: TrainedNetwork | None
    supervision: Supervision | None
    choose_level: Any
    notes: list[str]
    skipped: list[Skipped]
    encoded: cached_features.Encoded | None = None
    starts_trained: bool = False

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        return self.length.steps

    @property
    def steps_per_epoch(self) -> float:
        """Steps per epoch; may be below one for a tiny data set."""
        return self.order.steps_per_epoch

    def every(self, epochs: float) -> int:
        """Convert a number of epochs to whole steps, at least one."""
        if math.isinf(epochs):
            return sys.maxsize
        return max(1, round(epochs * self.steps_per_epoch))

    def data_record(self) -> dict[str, Any]:
        """What `dataset.json` says of the images."""
        labels = self.index.source.labels or []
        return {
            "fingerprint": self.index.fingerprint,
            "num_images": len(self.index),
            "canvas": self.index.canvas,
            "skipped": len(self.skipped),
            "classes": {name: labels.count(name) for name in sorted(set(labels))},
            "class_names": self.supervision.classes if self.supervision else [],
            "mask_values": self.supervision.mask_values if self.supervision else None,
            "splits": {k: len(v) for k, v in self.supervision.indices.items()} if self.supervision else {},
            "groups": len(set(self.index.source.groups or [])),
            "modalities": sorted(set(self.index.source.modalities or [])),
        }


def build(
    config: ConfigDict,
    workdir: Workdir | None = None,
    source: TrainedNetwork | None = None,
    progress: Sequence[Progress | None] = (None, None, None),
) -> Experiment:
    """Check the config, index the images, build the network and the step. Raises `UserError`.

    config: the config from `inherit.resolve`, in which every field is set.
    workdir: folder that keeps the index of the images; if None, nothing is written.
    source: the trained network that the run starts from.
    progress: called while the images are checked and during a blur search.
    """
    # Images
    identity, mesh = _checked(config, source), sharding.make_mesh(replica=config.sharding.replica)
    division = Division(mesh, config.sharding.params, config.sharding.min_mib * 2**20)
    images = _images(config, identity, workdir, source, mesh, progress)

    # Network, length, optimiser, and the initial state with the weights that it starts from
    labels = images.supervision
    network = _network(config, labels)
    length = schedule.lengths(config.optim, images.order.steps_per_epoch)
    learning_rate = schedule.make(config.optim, length)
    tx = optimizer.make(config.optim, learning_rate, network.model, network.rules, network.task.trains)
    taken, table, trained = _start(config, network, source, None if labels is None else labels.classes)
    make_state, state_shapes = _initial_state(network, tx, taken, division)

    # Store, and the other arrays that stay on the devices
    encoded = None
    if labels is not None and cached_features.wanted(config, labels, identity.kind):
        encode = cached_features.empty if workdir is None else cached_features.encode
        encoded = encode(config, network, images.loader, make_state().params, mesh, progress[2])
        network = cached_features.head_alone(network, encoded)
    store = _store(config, network, images, mesh, encoded)
    arrays, choose = {"images": store.arrays}, None
    if source is not None and labels is not None and labels.searches_online:
        arrays["search"] = jax.device_put(source.params, sharding.replicated(mesh))
        choose = supervision.online(labels, source, network, config.search.high_pass)

    # Step
    def prepare(arrays, batch, keys):
        at = choose(arrays["search"]) if choose is not None else None
        return network.inputs.train(store.gather(arrays["images"], batch), keys, at)

    def step_for(division: Division) -> Any:
        step = train_step.make_train_step(
            prepare, network.task, tx, learning_rate, config.seed, division, total_steps=length.steps
        )
        where = division.of_state(state_shapes), sharding.replicated(division.mesh)
        return jax.jit(step, donate_argnums=0, out_shardings=where)

    divided = [] if division.params == "replicate" else [division.line(jax.eval_shape(network.init))]
    lines = _contrasts(config, images.index) if labels is None else labels.lines
    return Experiment(
        config=config, mesh=mesh, network=network, index=images.index, loader=images.loader, order=images.order,
        store=store, arrays=arrays, length=length, train_step=step_for(division), step_for=step_for,
        make_state=make_state, state_shapes=state_shapes, source=source, supervision=labels,
        choose_level=choose, notes=[*lines, *table, *divided, *schedule.notes(config.optim, length)],
        skipped=list(images.index.skipped), starts_trained=trained, encoded=encoded,
    )  # fmt: skip


def _checked(config: ConfigDict, source: TrainedNetwork | None) -> Identity:
    """Check the config, and build what follows from it alone, before any image is read or searched.

    Raises `UserError`.
    """
    identity = checks.check(config)
    network = networks.build(config, 2 if identity.supervised else 0)
    learning_rate = schedule.make(config.optim, schedule.Lengths(1, 1.0, 0.0, 1.0))
    optimizer.make(config.optim, learning_rate, network.model, network.rules, network.task.trains)
    if config.data.store not in stores.STORES:
        raise unknown("config.data.store", config.data.store, stores.STORES)
    _start(config, network, source, None)
    return identity


@dataclasses.dataclass
class _Images:
    """The images of a run, how they are read, and the order in which they are used for training."""

    index: data_index.Index
    loader: Loader
    order: Order
    supervision: Supervision | None


@contextlib.contextmanager
def _index_of(workdir: Workdir | None) -> Iterator[Path | None]:
    """Where the pre-flight check keeps its results: in the workdir, or for other processes than the first in a copy."""
    if workdir is None or jax.process_index() == 0:
        yield workdir.index() if workdir is not None else None
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "index.json"
        with contextlib.suppress(OSError):
            shutil.copyfile(workdir.index(), copy)
        yield copy


def _images(
    config: ConfigDict,
    identity: Identity,
    workdir: Workdir | None,
    source: TrainedNetwork | None,
    mesh: Mesh,
    progress: Sequence[Progress | None],
) -> _Images:
    channels = config.model.in_chans
    with _index_of(workdir) as cache:
        if identity.supervised:
            index, labels = supervision.prepare(config, identity, source, mesh, cache, progress)
            extras = {}
            if labels.mask_values is None:
                extras["label"] = labels.labels
            if labels.levels is not None:
                extras["level"] = labels.levels
            loader = Loader(index, channels, extras, labels.split_numbers, labels.mask_classes)
            images = _Images(index, loader, supervision.train_order(config, labels), labels)
        else:
            index = dataset.build_index(config, cache, progress=progress[0])
            loader = Loader(index, channels, modality_of(index))
            images = _Images(index, loader, _order(config, identity, index), None)
    sharding.require_same(data=index.fingerprint)
    if workdir is not None:
        run_folder.check_data(workdir, index.fingerprint, len(index), index.earlier)
    return images


def _network(config: ConfigDict, labels: Supervision | None) -> Network:
    if labels is None:
        return networks.build(config)
    return networks.build(config, len(labels.classes), supervision.class_weights(config, labels))


def _store(
    config: ConfigDict, network: Network, images: _Images, mesh: Mesh, encoded: cached_features.Encoded | None
) -> stores.Resident | stores.Streaming:
    stop.poll()
    data, inputs = config.data, network.inputs
    if encoded is not None:
        return stores.Resident(encoded, images.order, mesh, config.optim.accum_steps)
    return stores.make(
        data.store,
        images.loader,
        images.order,
        mesh,
        config.optim.accum_steps,
        precompute=inputs.precompute if inputs.precomputes else None,
        num_threads=data.num_threads,
        num_workers=data.num_workers,
        cubes=inputs.cubes(config.seed),
    )


def _initial_state(network: Network, tx: Any, taken: Any, division: Division) -> tuple[Callable[[], TrainState], Any]:
    """A function that makes the state before the first step, divided among the devices from the beginning; its shapes.

    taken: weights that replace those of the initialisation.
    """

    begin = network.task.begin or (lambda params: params)

    def initial_state(taken):
        return train_step.create_state(begin(merged(network.init(), taken)), tx)

    shapes = jax.eval_shape(initial_state, taken)
    where = division.of_state(shapes)
    # It runs once, and most of its time on a CPU is its compilation, which this shortens. A ViT keeps the same bits.
    quickly = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    program = jax.jit(initial_state, out_shardings=where, compiler_options=quickly)
    place = lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
    return lambda: program(taken), jax.tree.map(place, shapes, where)


def _start(
    config: ConfigDict,
    network: Network,
    source: TrainedNetwork | None,
    classes: list[str] | None,
) -> tuple[Any, list[str], bool]:
    """Return the weights that are taken from `source`, lines that list them, and whether these are all weights."""
    if source is None:
        return {}, [], False
    shapes = jax.eval_shape(network.init)
    fit = warm_start.fit(source, shapes, network, config.init_strict, classes=classes, parts=config.init_parts)
    return fit.params, fit.table(source), not fit.new


def modality_of(index: data_index.Index) -> dict[str, np.ndarray]:
    """The modality numbers `(N,)` as `modality`, in the form a `Loader` expects; empty without modalities."""
    if index.source.modalities is None:
        return {}
    numbers = [MODALITIES.index(name) for name in index.source.modalities]
    return {"modality": np.array(numbers, np.int32)}


def _contrasts(config: ConfigDict, index: data_index.Index) -> list[str]:
    """A note if a loss that separates modalities sees one of them alone."""
    present = set(index.source.modalities or [])
    form = fields.flat(config).get("task.contrast")
    if len(present) != 1 or form in (None, "none") or not config.task.contrast_weight:
        return []
    return [
        f"config.task.contrast={form} separates CT from MR, and all volumes are {present.pop().upper()}: it only makes "
        "their features alike. config.task.contrast=none switches it off"
    ]


def _order(config: ConfigDict, identity: Identity, index: data_index.Index) -> Order:
    """The order that shows every image once per epoch, or the modalities in the ratio of the config."""
    text = config.data.ratio if identity.axes == 3 else ""
    if not text:
        return Order(len(index), config.optim.batch_size, config.seed)
    modalities = index.source.modalities
    present = sorted(set(modalities or []))
    try:
        pairs = [pair.split("=") for pair in text.split(",")]
        shares = {name.strip(): float(share) for name, share in pairs}
    except ValueError:
        shares = {}
    if sorted(shares) != present or not all(0 < share < np.inf for share in shares.values()):
        example = ",".join(f"{name}=1" for name in present or MODALITIES)
        raise UserError(
            f"config.data.ratio='{text}' must give every modality of the data a number above 0, such as {example}"
        )
    labels = np.array(modalities)
    seed, batch = config.seed, config.optim.batch_size
    return Order(len(index), batch, seed, labels=labels, shares=shares)
