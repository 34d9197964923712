"""A config that runs in seconds: a real config file, shrunk."""

import importlib
import os
from pathlib import Path

ROOT = Path(__file__).parent.parent

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
TRANSFER = {
    "init_from": "",
    "data.val_split": "",
    "data.test_split": "",
    "data.num_images": 45,
    "search.cache": "",
    "report.every_epochs": 1.0,
    "report.bootstrap": 20,
    "optim.epochs": 2.0,
    "optim.warmup_epochs": 0.5,
}
UNLABELLED = ("report.num_", "report.every", "model.decoder", "optim.steps")


def shrunk(name, transfer):
    """The small values that a config of this kind has."""
    if not transfer:
        return SHRINK
    out = {k: v for k, v in SHRINK.items() if not k.startswith(UNLABELLED)} | TRANSFER
    if transfer == "inherits":
        sizes = ("image_size", "model.")
        out = {k: v for k, v in out.items() if not k.startswith(sizes)}
    return out


def changed(name, **overrides):
    """What is changed in `configs/<name>.py`, by dotted names."""
    out = importlib.import_module(f"configs.{name}").get_config()
    own = {k.replace("__", "."): v for k, v in overrides.items()}
    kind = "select" in out and ("inherits" if own.get("init_from") else "scratch")
    return shrunk(name, kind) | own


def simulated(devices):
    """The environment of a process with so many CPU devices, which may take their time to meet each other."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    patience = "--xla_cpu_collective_call_terminate_timeout_seconds=600"
    paths = os.pathsep.join(str(path) for path in (ROOT, ROOT / "tests"))
    return os.environ | {"XLA_FLAGS": f"{flags} {patience}", "PYTHONPATH": paths}


def config(name="quickstart", **overrides):
    """`configs/<name>.py`, shrunk, then changed: `config("quickstart", optim__steps=6)`."""
    out = importlib.import_module(f"configs.{name}").get_config()
    values = changed(name, **overrides)
    with out.ignore_type():
        for key, value in values.items():
            node, *rest = key.split(".")
            if rest:
                out[node][rest[0]] = value
            else:
                out[node] = value
    return out.lock()


def flags(name="quickstart", **overrides):
    """The same as command-line flags."""
    values = SHRINK | {k.replace("__", "."): v for k, v in overrides.items()}
    return [f"--config=configs/{name}.py", *(f"--config.{k}={v}" for k, v in values.items())]
