"""The two presets of a study. `cpu` takes less than an hour on two cores; `full` uses the papers' settings."""

PRESETS = ("cpu", "full")
# The images on which the papers measured what the tables quote.
GE4K = "GE4K"

# A network of width 128 on 64-pixel images. As in configs/quickstart.py, the blur follows the resize, which would
# otherwise hide it.
_CPU_PRETRAIN = {
    "image_size": 64,
    "model.patch_size": 8,
    "model.embed_dim": 128,
    "model.depth": 3,
    "model.num_heads": 4,
    "model.decoder_embed_dim": 96,
    "model.decoder_depth": 2,
    "model.decoder_num_heads": 4,
    "task.blur_site": "network",
    "data.num_threads": 2,
    "optim.batch_size": 32,
    "optim.base_lr": 1.2e-2,
    "optim.steps": 400,
    "checkpoint.every_epochs": 100.0,
    "report.every_epochs": 1000.0,
    "log.tensorboard": False,
}
_CPU_FINETUNE = {
    "data.num_threads": 2,
    "data.crop_scale": (0.6, 1.0),
    "task.mixup": 0.0,
    "task.cutmix": 0.0,
    "model.drop_path": 0.0,
    "augment.rand_augment": "",
    "augment.erase_probability": 0.0,
    "select.metric": "auroc",
    "optim.batch_size": 16,
    "optim.base_lr": 8e-3,
    "optim.epochs": 10.0,
    "report.every_epochs": 2.5,
    "log.tensorboard": False,
}
# The images where the user gives none. There are few labels because the simulated classes are easy to distinguish.
# Speckle is random: perceptual hashes would find copies where there are none.
_PHANTOMS = {
    "pretrain": {"data.name": "phantoms", "data.num_images": 600},
    "finetune": {
        "data.name": "phantoms",
        "data.num_images": 600,
        "data.phantom_seed": 1,
        "data.fraction": 0.15,
        "optim.epochs": 25.0,
        "report.audit": "identical",
    },
}
# A run from scratch has no network to inherit the size from. Its own warm-up is longer than these short runs.
_CPU_SCRATCH = {k: v for k, v in _CPU_PRETRAIN.items() if k in (
    "image_size", "model.patch_size", "model.embed_dim", "model.depth", "model.num_heads")}  # fmt: skip
_CPU_SCRATCH["optim.warmup_epochs"] = 5.0


def preset(name: str) -> dict:
    """Overrides for all pre-training and all fine-tuning runs, and the fine-tuning seeds.

    `phantoms` are the overrides of runs for which the user gives no images.
    """
    if name == "cpu":
        return {
            "pretrain": dict(_CPU_PRETRAIN),
            "finetune": dict(_CPU_FINETUNE),
            "scratch": dict(_CPU_SCRATCH),
            "phantoms": _PHANTOMS,
            "seeds": (0, 1, 2),
            "paper_set": GE4K,
        }
    return {"pretrain": {}, "finetune": {}, "scratch": {}, "phantoms": {}, "seeds": (0, 1, 2, 3, 4), "paper_set": GE4K}


def gaussian(preset_name: str, sigma: float = 1.1) -> str:
    """DeblurrMAE's degradation; the `cpu` preset doubles sigma and does not round the kernel to 8 bits."""
    if preset_name == "cpu":
        return f"blur.gaussian(sigma={2 * sigma:g}, kernel='opencv_float')"
    return f"blur.gaussian(sigma={sigma:g})"


def ablation(preset_name: str, title: str, rows: dict, config: str = "deblur_mae_thyroid") -> dict:
    """A study of one pre-training config with other values of some fields.

    rows: by name, the fields that differ from DeblurrMAE with a Gaussian of sigma 1.1.
    """
    study = preset(preset_name)
    usual = {"task.degrade": gaussian(preset_name)}
    study["methods"] = {
        name: {"pretrain": config, "pretrain_overrides": usual | fields, "paper": {}} for name, fields in rows.items()
    }
    return study | {"title": title}


def levels(preset_name: str, max_sigma: float = 1.1, step: float = 0.1, min_sigma: float | None = None) -> str:
    """D2MAE's degradation; the `cpu` preset doubles sigma and does not round the kernel to 8 bits.

    min_sigma: sigma of the first level; None is one step.
    """
    small = preset_name == "cpu"
    values = {"min_sigma": min_sigma, "max_sigma": max_sigma, "step": step}
    written = [f"{name}={(1 + small) * value:g}" for name, value in values.items() if value is not None]
    return f"blur.gaussian_levels({', '.join(written)}{', kernel=' + repr('opencv_float') if small else ''})"
