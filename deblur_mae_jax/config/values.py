"""The values of each kind of run that differ from the defaults, and those of the published code."""

from __future__ import annotations

from typing import Any

from deblur_mae_jax.config.kinds import ENCODERS

# The values of each kind of run that differ from the defaults above.
_LABELS = {
    "data.split": "train",
    "data.crop_scale": (0.08, 1.0),
    "optim.epochs": 100.0,
    "optim.warmup_epochs": 5.0,
    "optim.base_lr": 1e-3,
    "optim.min_lr": 1e-6,
    "optim.b2": 0.999,
    "optim.layer_decay": 0.75,
    "optim.decay_on": "weights",
    "checkpoint.every_epochs": 5.0,
    "report.every_epochs": 1.0,
}
_MOCO = {
    "data.crop_scale": (0.08, 1.0),
    "optim.batch_size": 1024,
    "optim.epochs": 300.0,
    "optim.b2": 0.999,
    "optim.decay_on": "all",
}
_SIMCLR = {
    "data.crop_scale": (0.08, 1.0),
    "augment.jitter": (0.8, 0.8, 0.8, 0.2),
    "augment.view_blur_probability": (0.5, 0.5),
    "augment.solarize_probability": (0.0, 0.0),
    "model.predictor": (),
    "model.momentum": False,
    "model.projector_last": "scale",
    "optim.name": "lars_simclr",
    "optim.batch_size": 1024,
    "optim.base_lr": 0.3,
    "optim.weight_decay": 1e-6,
    "optim.epochs": 300.0,
    "optim.warmup_epochs": 10.0,
}
# SimMIM's commands: the rates are those of a batch of 512 images there, and of 256 here.
_SIMMIM = {
    "task.name": "masked_recon",
    "task.loss_on": "masked",
    "task.error": "absolute",
    "task.mask_ratio": 0.6,
    "data.crop_scale": (0.67, 1.0),
    "optim.batch_size": 2048,
    "optim.b2": 0.999,
    "optim.clip_norm": 5.0,
    "optim.decay_on": "weights",
    "optim.warmup_epochs": 10.0,
}
_DAE = {
    "image_size": 96,
    "model.name": "swin_unetr",
    "data.name": "nifti",
    "data.side": 64,
    "data.max_pixels": 500_000_000,
    "optim.batch_size": 16,
    "optim.scale_lr": False,
    "optim.base_lr": 4e-4,
    "optim.weight_decay": 1e-5,
    "optim.b2": 0.999,
}
_DAE_PRETRAINING = {
    **_DAE,
    # Noise, then down- and up-sampling in sequence, as in the code; the paper adds the two. The 0.1 is a variance.
    "task.degrade": "noise.gaussian_noise(variance=0.1, clip=False)|resample.down_up(4)",
    "optim.warmup_steps": 500,
    "optim.steps": 20_000,
    "optim.clip_norm": 1.0,
    "optim.decay_on": "weights",
    "optim.schedule": "timm",
    "report.num_images": 2,
    "report.num_eval_images": 4,
}
VALUES: dict[str, dict[str, Any]] = {
    "pretraining": {"task.name": "masked_recon"},
    "finetuning": {"task.name": "classify", "model.name": "vit", **_LABELS},
    "diffmae": {"task.name": "diffmae", "model.name": "vit_diffmae", "report.num_eval_images": 16},
    # ConvMAE's commands; the batch is 3,072 images.
    "convmae": {
        "task.name": "masked_recon",
        "model.name": "convvit_mae",
        "task.loss_on": "masked",
        "task.norm_pix_loss": True,
        "optim.batch_size": 1024,
        "optim.epochs": 1600.0,
    },
    "convvit": {
        "task.name": "classify",
        "model.name": "convvit",
        **_LABELS,
        "optim.base_lr": 5e-4,
        "optim.layer_decay": 0.65,
    },
    "simmim_vit": {"model.name": "vit_mim", **_SIMMIM, "optim.base_lr": 5e-5, "optim.schedule": "multistep"},
    "simmim_swin2d": {
        "model.name": "swin2d_mim",
        **_SIMMIM,
        "image_size": 192,
        "model.window": 6,
        "model.drop_path": 0.0,
        "optim.base_lr": 1e-4,
    },
    # SimMIM's fine-tuning of a ViT; BEiT's and USFM's have the same rates.
    "beit": {
        "task.name": "classify",
        "model.name": "beit",
        **_LABELS,
        "optim.base_lr": 6.25e-4,
        "optim.min_lr": 2.5e-7,
        "optim.warmup_epochs": 20.0,
        "optim.layer_decay": 0.65,
    },
    "backbones": {"task.name": "classify", **_LABELS, "optim.layer_decay": 1.0},
    "swin2d": {"task.name": "classify", "model.name": "swin2d", **_LABELS, "optim.layer_decay": 1.0},
    "probe": {"task.name": "probe", "model.name": "vit", "data.split": "train"},
    "blur_search": {"task.name": "blur_search", "model.name": "vit"},
    "moco_v3_vit": {
        "task.name": "moco_v3",
        "model.name": "siamese_vit",
        **_MOCO,
        "optim.base_lr": 1.5e-4,
        "optim.weight_decay": 0.1,
    },
    "moco_v3_resnet": {
        "task.name": "moco_v3",
        "model.name": "siamese_resnet",
        **_MOCO,
        "task.temperature": 1.0,  # the default of the published code; its commands for a ViT set 0.2
        "model.projector": (4096, 256),
        "model.predictor_last": "none",
        "data.crop_scale": (0.2, 1.0),
        "optim.name": "lars",
        "optim.base_lr": 0.3,
        "optim.weight_decay": 1e-6,
        "optim.warmup_epochs": 10.0,
    },
    "dino_v2": {
        "task.name": "dino_v2",
        "model.name": "vit_dino",
        "data.crop_scale": (0.32, 1.0),
        "optim.batch_size": 1024,
        "optim.epochs": 500.0,
        "optim.warmup_epochs": 10.0,
        "optim.scale_lr": False,
        "optim.base_lr": 4e-3,
        "optim.min_lr": 1e-6,
        "optim.b2": 0.999,
        "optim.weight_decay": 0.1,
        "optim.decay_on": "weights",
        "optim.clip_norm": 3.0,
    },
    "simclr_vit": {"task.name": "simclr", "model.name": "siamese_vit", **_SIMCLR, "model.projector": (2048, 2048, 128)},
    "simclr_resnet": {
        "task.name": "simclr",
        "model.name": "siamese_resnet",
        **_SIMCLR,
        "model.projector": (2048, 2048, 128),
    },
    "segmentation": {
        "task.name": "segment",
        "model.name": "vit_unetr",
        **_LABELS,
        "data.crop_scale": (0.5, 1.0),
        "data.val_split": "auto",
        "data.test_split": "auto",
        "select.metric": "dice",
        "optim.batch_size": 32,
    },
    **{
        f"segmenter_{encoder}": {
            "task.name": "segment",
            "model.name": "segmenter",
            "model.encoder": encoder,
            **_LABELS,
            "data.crop_scale": (0.5, 1.0),
            "data.val_split": "auto",
            "data.test_split": "auto",
            "select.metric": "dice",
            "optim.batch_size": 16,
            "optim.layer_decay": 1.0,
        }
        for encoder in ENCODERS
    },
    "volumes": {"task.name": "disrupted_recon", **_DAE_PRETRAINING},
    "pretext": {
        "task.name": "pretext",
        **_DAE_PRETRAINING,
        "task.degrade": "none",  # the task makes its own views
        "model.name": "swin_ssl",
        "model.patch_embed": "conv",
    },
    "volume_segmentation": {
        "task.name": "segment",
        **_DAE,
        "model.normalize": True,  # as MONAI and the published fine-tuning, unlike its pre-training
        "data.split": "train",
        "data.val_split": "auto",
        "data.test_split": "auto",
        "data.crops_per_image": 4,
        "select.metric": "dice",
        "optim.epochs": 600.0,
        "optim.warmup_epochs": 50.0,
        "optim.decay_on": "all",
        "report.every_epochs": 10.0,
    },
}
# Settings in which the published code differs from the papers.
UPSTREAM: dict[str, dict[str, Any]] = {
    # DeblurringMIM: a constant rate, no layer decay, no mixing, stopped 200 epochs after the best.
    "finetuning": {
        "task.mixup": 0.0,
        "task.cutmix": 0.0,
        "optim.base_lr": 1e-3,
        "optim.min_lr": 1e-6,
        "optim.warmup_epochs": 5.0,
        "optim.weight_decay": 0.01,
        "optim.layer_decay": 1.0,
        "optim.decay_on": "all",
        "optim.schedule": "constant",
        "optim.epochs": 10_000.0,
        "select.patience_epochs": 200.0,
    },
    # DAE: nearest-neighbour resampling, channels masked alike in a whole batch, the rates of its README. Two of its
    # bugs are not reproduced: its contrast is meaningless (config.task.contrast=code), and its axes are scrambled
    # (config.model.layout=as_coded).
    "volumes": {
        "task.degrade": "noise.gaussian_noise(variance=0.1, clip=False)|resample.down_up(4, method='nearest')",
        "task.local_mask_scope": "batch",
        "task.contrast_weight": 0.03,
        "task.temperature": 0.5,
        "optim.base_lr": 1e-4,
        "optim.min_lr": 1e-5,
        "optim.warmup_lr": 1e-6,
        "optim.weight_decay": 0.05,
        "optim.steps": 0,
        "optim.warmup_steps": 0,
        "optim.epochs": 1000.0,
        "optim.warmup_epochs": 4.0,
    },
    # DAE's fine-tuning commands: twice the learning rate. It changes once per epoch and is exactly 0 in the first.
    "volume_segmentation": {"optim.base_lr": 8e-4, "optim.schedule": "by_epoch"},
}


UPSTREAM |= {
    "convvit": UPSTREAM["finetuning"],
    "beit": UPSTREAM["finetuning"],
    "backbones": UPSTREAM["finetuning"],
    "swin2d": UPSTREAM["finetuning"],
}
# The published commands: batch 4096; the rate and weight decay of SimCLR's command for 100 epochs.
UPSTREAM |= {name: {"optim.batch_size": 4096} for name in ("moco_v3_vit", "moco_v3_resnet")}
UPSTREAM |= {
    name: {"optim.batch_size": 4096, "optim.epochs": 100.0, "optim.weight_decay": 1e-4}
    for name in ("simclr_vit", "simclr_resnet")
}
# For small networks and sets of some hundred to a few thousand images: no mixing, mild crops, a short run.
SMALL: dict[str, Any] = {
    "task.mixup": 0.0,
    "task.cutmix": 0.0,
    "data.crop_scale": (0.6, 1.0),
    "model.drop_path": 0.0,
    "augment.rand_augment": "",
    "augment.erase_probability": 0.0,
    "select.metric": "auroc",
    "optim.batch_size": 32,
    "optim.base_lr": 4e-3,
    "optim.layer_decay": 1.0,
    "optim.epochs": 15.0,
    "optim.warmup_epochs": 1.0,
}
# A network that a CPU can pre-train. Blur follows the resize, which would otherwise hide it.
SMALL_PRETRAINING: dict[str, Any] = {
    "image_size": 96,
    "model.patch_size": 12,
    "model.embed_dim": 192,
    "model.depth": 6,
    "model.num_heads": 3,
    "model.decoder_embed_dim": 96,
    "model.decoder_depth": 2,
    "model.decoder_num_heads": 4,
    "task.blur_site": "network",
    "optim.batch_size": 64,
    "optim.base_lr": 4e-3,
    "optim.steps": 4000,
}
# A ResNet that a CPU can pre-train by SimCLR in 40 minutes on one core.
SMALL_RESNET: dict[str, Any] = {"model.width": 16, "model.depths": (1, 1, 2, 1)}
SMALL_SIMCLR: dict[str, Any] = {
    **SMALL_RESNET,
    "image_size": 64,
    "model.projector": (256, 128),
    "data.crop_scale": (0.2, 1.0),
    "data.max_side": 160,
    "augment.jitter": (0.4, 0.4, 0.0, 0.0),
    "augment.view_blur_sigma": (0.1, 1.0),
    "optim.name": "adamw",
    "optim.batch_size": 128,
    "optim.base_lr": 2e-3,
    "optim.weight_decay": 0.05,
    "optim.steps": 3000,
}
# Where the fine-tuning recipes of the networks' own papers differ.
OWN_RECIPES: dict[str, dict[str, Any]] = {
    "convnext": {"optim.layer_decay": 0.8, "model.drop_path": 0.2},
    "convnext-L": {"model.drop_path": 0.3},
    "swin2d": {"optim.layer_decay": 0.9, "model.drop_path": 0.2},
}
# The presets `small` by kind of run.
PRESETS: dict[str, dict[str, Any]] = {
    "pretraining": SMALL_PRETRAINING, "finetuning": SMALL, "backbones": SMALL_RESNET, "simclr_resnet": SMALL_SIMCLR,
}  # fmt: skip
