"""Build a network, with its task and input pipeline, from a config: `build(config)`.

This is the only module that reads from a config what kind of run it describes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from deblur_mae_jax import lookup, sides
from deblur_mae_jax.data import dataset
from deblur_mae_jax.degradations import parse
from deblur_mae_jax.errors import UserError, unknown
from deblur_mae_jax.input_pipeline.contract import InputPipeline
from deblur_mae_jax.input_pipeline.images import ImageInputs
from deblur_mae_jax.input_pipeline.volumes import VolumeInputs
from deblur_mae_jax.models.contract import Rules
from deblur_mae_jax.tasks.contract import Kind, Task

# Fields of `config.task` that belong to the input pipeline or the experiment; the others belong to the task.
INPUT_FIELDS = ("name", "degrade", "blur_site", "cache_features")
IMAGES = {2: "2-D images", 3: "volumes"}
DTYPES = ("auto", "bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Identity:
    """The properties of a run that follow from its config alone.

    kind: a `Kind`, such as "classify"; "" for a command that trains nothing.
    axes: spatial axes of the images, 2 or 3.
    supervised: whether the run learns from labels.
    evaluator: name of the module in `deblur_mae_jax/evaluators` that evaluates the network.
    """

    kind: str
    axes: int
    supervised: bool
    evaluator: str

    @property
    def starts_from_pretrained(self) -> bool:
        """Whether this run inherits settings from a trained network. Tasks with labels and commands do."""
        return self.supervised or not self.kind


@dataclasses.dataclass
class Network:
    """A model with its task and its input pipeline. It holds neither data nor parameters.

    inputs: the input pipeline, `ImageInputs` for 2-D images or `VolumeInputs` for volumes.
    rules: how the model's parameters are treated.
    conditioned: whether the model receives the blur level of each image.
    flops_per_image: floating-point operations of a training step, per image.
    forward_flops: floating-point operations of one forward pass without masking, per image.
    """

    identity: Identity
    model: Any
    task: Task
    inputs: Any
    rules: Rules
    conditioned: bool
    flops_per_image: float
    forward_flops: float
    seed: int

    @property
    def kind(self) -> str:
        """As in `Identity`."""
        return self.identity.kind

    @property
    def axes(self) -> int:
        """As in `Identity`."""
        return self.identity.axes

    @property
    def can_search(self) -> bool:
        """Whether the network can search blur levels: it must reconstruct 2-D images at a given level."""
        reconstructs = self.kind == "reconstruct" and self.axes == 2 and self.task.sample is None
        return reconstructs and self.inputs.degradation.at_level is not None

    @property
    def supervised(self) -> bool:
        """As in `Identity`."""
        return self.identity.supervised

    def init(self) -> Any:
        """Fresh parameters, from the config's seed; jittable."""
        # No run reaches this step number, so no training step uses the same random numbers.
        key = jax.random.fold_in(jax.random.key(self.seed), 0xFFFFFFFF)
        images = jnp.zeros((1, *sides.of(self.inputs.image_size, self.axes), self.inputs.in_chans))
        return self.model.init(key, images, level=jnp.ones((1,), jnp.int32))["params"]


def identify(config: ConfigDict) -> Identity:
    """Identify the run that a config describes, without building anything. Raises `UserError`."""
    axes = model_module(config).AXES
    tasks = lookup.modules_with("tasks", "KIND")
    if config.task.name not in tasks:  # a command
        return Identity("", axes, False, "")
    kind = tasks[config.task.name].KIND
    return Identity(kind.name, axes, kind.supervised, kind.evaluator)


def model_module(config: ConfigDict) -> Any:
    """The file of `deblur_mae_jax/models` that `config.model.name` names."""
    return lookup.module("models", config.model.name, "Model", "config.model.name")


def check(config: ConfigDict) -> Identity:
    """Identify a training run. Raises `UserError` if its model does not fit its task or its images."""
    task = lookup.module("tasks", config.task.name, "make", "config.task.name")
    kind: Kind = task.KIND
    axes = dataset.module_of(config.data.name, model_module(config).AXES).AXES
    models = lookup.modules_with("models", "Model")
    fitting = [
        name
        for name, module in models.items()
        if kind.name in module.KINDS and module.AXES in kind.axes and axes == module.AXES
    ]
    if config.model.name not in fitting:
        raise UserError(
            f"config.model.name={config.model.name} does not fit config.task.name={config.task.name} on {IMAGES[axes]} "
            f"(config.data.name={config.data.name}). Choices: {', '.join(fitting) or 'none; another task'}"
        )
    return identify(config)


def need_images(identity: Identity, path: Any) -> None:
    """Raise `UserError` if the network works on volumes."""
    if identity.axes == 3:
        raise UserError(f"'{path}' is a network for volumes, of which Python segments volumes alone (dm.segment)")


def build(config: ConfigDict, num_classes: int = 0, class_weights: tuple[float, ...] = ()) -> Network:
    """Build the network that a config describes. Raises `UserError`.

    num_classes: number of classes, for a task with labels.
    class_weights: weight of each class in the loss. (): all classes count alike.
    """
    identity, module = check(config), model_module(config)
    degradation = parse.degradation(config.task.degrade)
    if identity.axes not in degradation.ndim:
        spec = str(config.task.degrade)
        clip = "; for volumes give it clip=False" if "gaussian_noise" in spec else ""
        raise UserError(
            f"config.task.degrade='{config.task.degrade}' is not defined for {identity.axes}-D images{clip}"
        )
    if identity.axes == 3 and identity.kind in ("segment", "pretext") and not degradation.identity:
        what = (
            "volumes to segment are not degraded"
            if identity.kind == "segment"
            else f"{config.task.name} makes its own views"
        )
        raise UserError(f"config.task.degrade='{config.task.degrade}': {what}. Choices: none")
    fields = config.model.to_dict()
    del fields["name"]
    conditioning = str(fields.get("conditioning", "none"))
    if conditioning != "none" and not degradation.num_levels:
        raise UserError(
            f"config.model.conditioning={conditioning} needs a degradation with levels, "
            f"such as blur.gaussian_levels; config.task.degrade='{config.task.degrade}' has none. "
            "Choices: none, or another degradation"
        )
    if fields["dtype"] not in DTYPES:
        raise unknown("config.model.dtype", fields["dtype"], DTYPES)
    if fields["dtype"] == "auto":
        fields["dtype"] = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    size = sides.checked(config.image_size, identity.axes)
    more = {"image_size": size, "num_levels": degradation.num_levels}
    if identity.supervised:
        more["num_classes"] = num_classes
    model = lookup.call(module.Model, "model", fields, **more)
    settings = {k: v for k, v in config.task.to_dict().items() if k not in INPUT_FIELDS}
    weights = {"class_weights": class_weights} if class_weights else {}
    make = lookup.module("tasks", config.task.name, "make", "config.task.name").make
    task = lookup.call(make, "task", settings, model=model, **weights)
    pipeline = ImageInputs if identity.axes == 2 else VolumeInputs
    inputs: InputPipeline = pipeline.from_config(config, degradation, identity.kind)
    return Network(
        identity,
        model,
        task,
        inputs,
        module.RULES if isinstance(module.RULES, Rules) else module.RULES(model),
        conditioning != "none",
        module.flops_per_image(model, task.mask_ratio),
        module.flops_per_image(model, 0.0, training=False),
        config.seed,
    )
