"""Defaults of the runs that learn to segment, volumes or pictures."""

from ml_collections import ConfigDict

from configs import transfer, volumes

RECIPES = ("paper", "upstream")


def get_config(recipe: str = "paper") -> ConfigDict:
    """Segmentation of volumes."""
    return of_volumes(recipe)


def _shared(config: ConfigDict) -> None:
    """What volumes and pictures have in common."""
    config.init_from = (
        ""  # the workdir of a pre-training run, or a file of weights; "": from scratch
    )
    config.image_size = 0  # 0 and "inherit": as in init_from
    task = config.task
    config.task = ConfigDict()
    config.task.name = "segment"
    config.task.degrade = task.degrade
    config.task.blur_site = task.get("blur_site", "native")
    config.task.loss = "dice_ce"  # dice_ce (published code) | dice (the paper's words) | ce
    config.task.include_background = True  # in the Dice term
    config.task.dice_weight = 1.0
    config.task.ce_weight = 1.0

    data = config.data
    data.split = "train"
    # "auto": splits called val and test where there are any, else made here, whole patients at a time.
    data.val_split = "auto"
    data.test_split = "auto"
    data.split_seed = 0
    data.folds = 5
    data.fold = 0
    data.label_names = ()  # of the values in the masks, in order, without the background
    data.crops_per_image = 1  # in an epoch

    config.augment = ConfigDict()
    config.augment.intensity_scale = 0.1
    config.augment.intensity_shift = 0.1
    config.augment.intensity_probability = 0.1

    config.infer = ConfigDict()
    config.infer.overlap = 0.5  # of neighbouring windows
    config.infer.blending = "gaussian"  # gaussian | constant
    config.infer.batch_size = 4  # windows, or pictures, at once
    config.infer.flips = False  # average over flipped views (8 for volumes, 2 for pictures)
    config.infer.largest_component = False  # keep only the largest part of every label

    config.select = ConfigDict()
    config.select.metric = "dice"  # dice | hd | hd95 | surface_distance | surface_dice
    config.select.patience_epochs = 0.0

    config.report.bootstrap = 1000
    config.report.tolerance = (
        1.0  # mm, or pixels: surfaces so close count as the same (surface Dice)
    )
    config.report.empty = "skip"  # skip | count: a label that truth or prediction does not have
    config.report.audit = "near"


def of_volumes(recipe: str = "paper") -> ConfigDict:
    """Fine-tuning of Disruptive Autoencoders (MIDL 2024), or training from scratch.

    recipe: "paper" (rate 4e-4, smooth schedule), or "upstream" for what the published commands do: rate 8e-4, a rate per
    whole epoch that is exactly 0 in the first.
    """
    config = volumes.get_config()
    config.task.degrade = "none"
    _shared(config)
    config.init_parts = (
        "both"  # both | encoder | decoder of init_from; its output layer only for the same labels
    )
    model = config.model
    for name in ("variant", "patch_embed", "merge_order"):
        model[name] = "inherit"
    model.in_chans = 0
    del model["out_chans"]
    model.normalize = True  # as MONAI and the published fine-tuning, unlike its pre-training
    del config.data["ratio"]
    config.data.crops_per_image = 4
    config.data.foreground = 0.5  # share of the crops whose middle is a labelled voxel
    config.data.check = "pixels"
    config.augment.flip_probability = 0.2  # along each axis
    config.augment.rotate_probability = 0.2  # by 90, 180 or 270 degrees around the third axis

    o = config.optim
    o.batch_size = 16
    o.steps, o.warmup_steps = 0, 0
    o.epochs, o.warmup_epochs = 600.0, 50.0
    o.base_lr = 4e-4
    o.weight_decay = 1e-5
    o.decay_on = "all"
    o.clip_norm = 0.0
    o.schedule = "cosine"  # cosine | by_epoch (MONAI's) | constant
    config.checkpoint.every_epochs = 10.0
    config.report.every_epochs = 10.0
    if recipe == "upstream":
        o.base_lr, o.schedule = 8e-4, "by_epoch"
    elif recipe not in RECIPES:
        raise ValueError(f"--config: unknown recipe '{recipe}'. Choices: {', '.join(RECIPES)}.")
    return config


def of_pictures() -> ConfigDict:
    """A pre-trained ViT with a convolutional decoder (UNETR), MAE's fine-tuning recipe without mixing."""
    config = transfer.get_config()
    model, search = config.model, config.search
    config.task = ConfigDict({"degrade": "inherit", "blur_site": "inherit"})
    _shared(config)
    config.search = search  # how the blur of each image is found, as in fine-tuning a classifier
    config.model = ConfigDict()
    config.model.name = "vit_unetr"
    for name in ("variant", "patch_size", "in_chans", "embed_dim", "depth", "num_heads", "conditioning", "level_code",
                 "dtype", "attention", "remat"):  # fmt: skip
        config.model[name] = model[name]
    config.model.width = 16  # channels of the decoder at full resolution
    for name in ("balance", "positive", "crop_rejection"):
        del config.data[name]
    config.data.crop_scale = (0.5, 1.0)
    config.optim.batch_size = 32
    return config
