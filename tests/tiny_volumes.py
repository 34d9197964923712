"""Volumes that several tests look at, and a config for them that runs in seconds."""

import nibabel as nib
import numpy as np
import tiny

from deblur_mae_jax import config as fields

SEGMENTATION = {
    "image_size": 32, "model.variant": "12", "data.name": "phantoms3d", "data.num_images": 10, "data.side": 24,
    "data.num_threads": 2, "data.crops_per_image": 1, "optim.batch_size": 2, "optim.epochs": 1.0,
    "optim.warmup_epochs": 0.5, "checkpoint.every_epochs": 1.0, "report.every_epochs": 1.0,
    "log.every_steps": 1, "log.tensorboard": False, "infer.batch_size": 1, "compilation_cache": "auto",
}  # fmt: skip
SMALL = {
    "image_size": 32, "model.variant": "12", "data.name": "phantoms3d", "data.num_images": 6, "data.side": 24,
    "data.num_threads": 2, "optim.batch_size": 2, "optim.steps": 2, "checkpoint.every_epochs": 1.0,
    "report.every_epochs": 1000.0, "report.num_images": 1, "report.num_eval_images": 2, "log.every_steps": 1,
    "log.tensorboard": False,
}  # fmt: skip


def config_of(name="dae_ct_mr", **overrides):
    config = tiny.load(name)
    config.update_from_flattened_dict(SMALL | {k.replace("__", "."): v for k, v in overrides.items()})
    return config.lock()


def changed(config, values):
    """The config with fields of dotted names replaced, locked."""
    with config.ignore_type():
        fields.change(config, values)
    return config.lock()


def dotted(overrides):
    return {k.replace("__", "."): v for k, v in overrides.items()}


def segmentation(name="segment_volumes", **overrides):
    """A segmentation of volumes, shrunk, then changed."""
    return changed(tiny.load(name), SEGMENTATION | dotted(overrides))


def save(path, values, affine=None, dtype=np.float32):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(values, dtype), np.eye(4) if affine is None else affine), path)
    return path


def cube(seed=0, shape=(12, 14, 10), low=-1200, high=1500):
    return np.random.default_rng(seed).uniform(low, high, shape)
