"""The parts of a run that need no images: model, task and input path, from the config."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from deblur_mae_jax import augment, inputs, lookup, volumes
from deblur_mae_jax.errors import UserError

IMAGENET = {1: ((0.449,), (0.226,)), 3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}


@dataclasses.dataclass
class Network:
    """Model, task and input path; no data."""

    model: Any
    loss: Any
    inputs: Any  # inputs.Inputs, or volumes.Cubes for volumes
    init: Callable[[], Any]
    flops_per_image: float


def task_module(config: ConfigDict) -> Any:
    """The file of `deblur_mae_jax/tasks` that `config.task.name` names."""
    return inspect.getmodule(lookup.function("tasks", config.task.name, "make", "config.task.name"))


def is_supervised(config: ConfigDict) -> bool:
    """Whether the task learns from labels."""
    return getattr(task_module(config), "SUPERVISED", False)


def kind(config: ConfigDict) -> str:
    """What the task learns ("classify", "segment", ...); "" for programs that train nothing."""
    known = config.task.name in lookup.module_names("tasks")
    return task_module(config).KIND if known else ""


def check_fit(config: ConfigDict) -> None:
    """Raise `UserError` where the network is of no use for the task, or for these images."""
    fitting = lookup.modules_with("models", "KINDS", task_module(config).KIND)
    volumes_asked = "ct_window" in config.data
    fitting = [m for m in fitting if (_axes_of(m) == 3) == volumes_asked]
    if config.model.name not in fitting:
        raise UserError(
            f"config.model.name={config.model.name} does not fit config.task.name={config.task.name} on "
            f"{'volumes' if volumes_asked else 'pictures'}. Choices: {', '.join(fitting)}"
        )


def _axes_of(model: str) -> int:
    factory = lookup.function("models", model, "Model", "config.model.name")
    return getattr(inspect.getmodule(factory), "NDIM", 2)


def num_axes(config: ConfigDict) -> int:
    """Spatial axes of the images that the network of this config is for: 2 or 3."""
    return _axes_of(config.model.name)


def need_pictures(config: ConfigDict, path: Any) -> None:
    """Raise `UserError` for a network of volumes."""
    if num_axes(config) == 3:
        raise UserError(f"'{path}' is a network for volumes: only dm.segment is for them")


def build_network(
    config: ConfigDict, num_classes: int = 0, class_weights: tuple[float, ...] = ()
) -> Network:
    """The parts of a run that need no images. Raises `UserError`."""
    degradation, axes = lookup.degradation(config.task.degrade), num_axes(config)
    if axes not in degradation.ndim:
        raise UserError(
            f"config.task.degrade='{config.task.degrade}' is not defined for {axes}-D images"
        )
    settings = config.model.to_dict()
    factory = lookup.function("models", settings.pop("name"), "Model", "config.model.name")
    if settings.get("conditioning", "none") != "none" and not degradation.num_levels:
        raise UserError(
            f"config.model.conditioning={settings['conditioning']} needs a degradation with levels, "
            f"such as blur.gaussian_levels; config.task.degrade='{config.task.degrade}' has none. "
            "Choices: none, or another degradation"
        )
    if settings["dtype"] == "auto":
        settings["dtype"] = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    supervised = is_supervised(config)
    check_fit(config)
    if supervised:
        settings["num_classes"] = num_classes
    model = factory(image_size=config.image_size, num_levels=degradation.num_levels, **settings)

    task = config.task.to_dict()
    make_task = task_module(config).make
    task["class_weights"] = class_weights
    accepted = inspect.signature(make_task).parameters
    loss = make_task(model, **{k: v for k, v in task.items() if k in accepted})

    count = lookup.function("models", config.model.name, "flops_per_image", "config.model.name")
    if axes == 3:
        cubes = volumes.Cubes(
            degradation, config.image_size, config.model.in_chans, **_augmentation(config)
        )

        def init_cube():
            shape = (1, *(config.image_size,) * 3, config.model.in_chans)
            return model.init(_init_key(config), jnp.zeros(shape))["params"]

        return Network(model, loss, cubes, init_cube, count(model))
    data, channels = config.data, config.model.in_chans
    mean, std = IMAGENET[channels]
    mean, std = tuple(data.mean) or mean, tuple(data.std) or std
    augmentation: dict[str, Any] = {}
    if "augment" in config:
        a = config.augment
        if "rand_augment" in a:
            augmentation["augment"] = augment.rand_augment(a.rand_augment, mean)
        if a.get("erase_probability"):
            augmentation["erase"] = augment.RandomErasing(a.erase_probability)
        if "intensity_scale" in a:
            augmentation["intensity"] = augment.Intensity(**_intensity(a))
    network_inputs = inputs.Inputs(
        degradation,
        image_size=config.image_size,
        in_chans=channels,
        blur_site=config.task.blur_site,
        mean=mean,
        std=std,
        crop_scale=tuple(data.crop_scale),
        crop_ratio=tuple(data.crop_ratio),
        flip=data.flip,
        gray_target=data.gray_target,
        crop_rejection=data.get("crop_rejection", True),
        **augmentation,
    )
    mask_ratio = 0.0 if supervised else config.task.mask_ratio

    def init():
        key = _init_key(config)
        image = jnp.zeros((1, config.image_size, config.image_size, channels))
        level = jnp.ones((1,), jnp.int32)
        if supervised:
            return model.init(key, image, level)["params"]
        noise = jnp.zeros((1, model.grid**2))
        return model.init(key, image, noise, mask_ratio, level)["params"]

    return Network(model, loss, network_inputs, init, count(model, mask_ratio))


def _intensity(a: ConfigDict) -> dict[str, float]:
    """The fields of `augment.Intensity` in `config.augment`."""
    return {
        "scale": a.intensity_scale,
        "shift": a.intensity_shift,
        "probability": a.intensity_probability,
    }


def _augmentation(config: ConfigDict) -> dict[str, Any]:
    """The fields of `volumes.Cubes` that a config with augmentation sets."""
    if "augment" not in config:
        return {}
    a = config.augment
    return {
        "foreground": config.data.foreground,
        "flip": a.flip_probability,
        "rotate": a.rotate_probability,
        "intensity": augment.Intensity(**_intensity(a)),
    }


def _init_key(config: ConfigDict) -> jax.Array:
    """A step number that no run reaches, so that no training draw is shared with it."""
    return jax.random.fold_in(jax.random.key(config.seed), 0xFFFFFFFF)
