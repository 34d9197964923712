"""A config that runs in seconds: a real config file, shrunk."""

import importlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from deblur_mae_jax import config as fields
from deblur_mae_jax import network as networks

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("[a-z]*.py"))

SHRINK = {
    "image_size": 16,
    "model.patch_size": 4,
    "model.embed_dim": 32,
    "model.depth": 1,
    "model.num_heads": 4,
    "model.decoder_embed_dim": 16,
    "model.decoder_depth": 1,
    "model.decoder_num_heads": 2,
    "data.name": "phantoms",
    "data.num_images": 24,
    "data.side": 40,
    "data.num_threads": 2,
    "optim.batch_size": 8,
    "optim.steps": 4,
    "checkpoint.every_epochs": 1.0,
    "report.every_epochs": 1000.0,
    "report.num_images": 3,
    "report.num_eval_images": 6,
    "log.every_steps": 1,
    "log.tensorboard": False,
}

# A run with labels has no decoder of its own, and its sizes come from where it starts.
LABELS = {
    "init_from": "",
    "data.val_split": "",
    "data.test_split": "",
    "data.num_images": 45,
    "search.cache": "",
    "report.every_epochs": 1.0,
    "optim.epochs": 2.0,
    "optim.warmup_epochs": 0.5,
}
PROJECTION = {"model.projector": (16, 16, 8), "model.predictor": (16, 8)}
BACKBONES = ("resnet", "convnext", "swin2d")
CONVVIT = {"image_size": 32, "model.patch_size": 16, "model.stem_dims": (8, 12), "model.stem_depths": (1, 1)}
# Networks that cannot start from a ViT.
OTHERS = (*BACKBONES, "convvit", "beit")
MIM = {"model.mask_size": 8}
SWIN_MIM = {"image_size": 64, "model.width": 8, "model.depths": (1, 1, 2, 1), "model.mask_size": 32, "model.window": 2}
BACKBONE = {"image_size": 32, "model.width": 8, "model.depths": (1, 1, 2, 1)}
# What tests rely on, whatever the demo is tuned to.
QUICKSTART = {
    "task.degrade": "blur.gaussian_levels(max_sigma=2.2, step=0.2, kernel='opencv_float')",
    "task.mask_ratio": 0.75,
    "data.crop_scale": (0.2, 1.0),
    "optim.base_lr": 1.2e-2,
    "optim.b2": 0.95,
    "report.eval_split": "",
}
UNLABELLED = ("report.num_", "report.every", "model.decoder", "optim.steps")


def others_slow(values: Iterable[Any], *kept: Any) -> list[Any]:
    """Values of a parameter of a test. `make test` runs the kept ones; the others are slow."""
    values = list(values)
    assert set(kept) <= set(values), "a kept value is not among the values"
    return [
        v if v in kept else pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values
    ]


def load(name):
    """`configs/<name>.py`; `"finetune:ovary"` with an argument."""
    file, _, arguments = name.partition(":")
    get = importlib.import_module(f"configs.{file}").get_config
    return get(arguments) if arguments else get()


def identity(name):
    """What a run of `configs/<name>.py` is."""
    return networks.identify(load(name))


def changed(name, **overrides):
    """What is changed in `configs/<name>.py`, by dotted names."""
    own = {k.replace("__", "."): v for k, v in overrides.items()}
    if not identity(name).starts_from_pretrained:
        has, model = fields.flat(load(name)), load(name).model
        projection = PROJECTION if "model.projector" in has else {}
        if projection and not model.predictor:
            projection = PROJECTION | {"model.predictor": ()}
        if "augment.local_crops" in has:
            projection = {"augment.local_crops": 2, "augment.local_size": 8, "model.prototypes": 12,
                          "model.head_hidden": 16, "model.head_bottleneck": 8}  # fmt: skip
        if "task.sampling_steps" in has:
            projection = {"task.sampling_steps": 3, "task.samples": 2}
        own_sizes = {"siamese_resnet": BACKBONE, "convvit_mae": CONVVIT, "vit_mim": MIM, "swin2d_mim": SWIN_MIM}
        own_sizes = own_sizes.get(model.name, {})
        shrunk = SHRINK | projection | own_sizes
        shrunk = {field: value for field, value in shrunk.items() if field in has}
        return shrunk | (QUICKSTART if name == "quickstart" else {}) | own
    out = {k: v for k, v in SHRINK.items() if not k.startswith(UNLABELLED)} | LABELS
    kind, segments = load(name).model.name, load(name).model.name == "segmenter"
    if segments:
        kind = load(name).model.encoder
    if kind in BACKBONES:
        out = {k: v for k, v in out.items() if not k.startswith("model.")} | BACKBONE
    if kind == "convvit":
        out |= CONVVIT
    if segments:
        out |= {"model.decoder_width": 8} if load(name).model.decoder == "upernet" else {}
        out |= {"image_size": 32 if kind in ("vit", "beit") else 64}
    out = {k: v for k, v in out.items() if k in fields.flat(load(name))}
    if own.get("init_from"):
        out = {k: v for k, v in out.items() if not k.startswith(("image_size", "model."))}
    return out | own


def simulated(devices):
    """The environment of a process with so many CPU devices, which may take their time to meet each other."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    patience = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests"))
    return os.environ | {"XLA_FLAGS": f"{flags} {patience}", "PYTHONPATH": paths}


def config(name="quickstart", **overrides):
    """`configs/<name>.py`, shrunk, then changed: `config("quickstart", optim__steps=6)`."""
    out = load(name)
    with out.ignore_type():
        fields.change(out, changed(name, **overrides))
    return out.lock()


def resolved(name="quickstart", **overrides):
    """The same without unset fields, as `network.build` and `experiment.build` take it."""
    from deblur_mae_jax.pretrained import inherit

    return inherit.resolve(config(name, **overrides))[0]


def flags(name="quickstart", **overrides):
    """The same as command-line flags."""
    values = changed(name, **overrides)
    return [f"--config=configs/{name}.py", *(f"--config.{k}={v}" for k, v in values.items())]
