"""Defaults of the runs that start from a pre-trained network and learn from labels."""

from ml_collections import ConfigDict

from configs import common


def get_config(recipe: str = "paper") -> ConfigDict:
    """Fine-tuning with the MAE recipe (He et al. 2022, table 9), which DeblurrMAE and D2MAE use.

    recipe: "paper", or "repo" for what the published DeblurringMIM code did (constant rate, no layer
    decay, no mixing, weight decay 0.01, stop 200 epochs after the best).
    """
    config = common.get_config()
    # Everything that says "inherit" (and 0 or () in the fields below) is taken from config.init_from:
    # degradation, sizes, normalisation. "": from scratch.
    config.init_from = ""

    config.image_size = 0
    config.task = ConfigDict()
    config.task.name = "classify"
    config.task.degrade = "inherit"
    config.task.blur_site = "inherit"
    config.task.frozen = False  # True: only the head learns
    config.task.label_smoothing = 0.1
    config.task.mixup = 0.8  # parameter of the Beta distribution, 0: off
    config.task.cutmix = 1.0
    config.task.mix_probability = 1.0  # of mixing a batch
    config.task.mix_switch = 0.5  # of cutmix where both are on

    model = config.model
    config.model = ConfigDict()
    config.model.name = "vit"
    config.model.variant = "inherit"
    for name in ("patch_size", "in_chans", "embed_dim", "depth", "num_heads"):
        config.model[name] = 0
    config.model.conditioning = "inherit"
    config.model.level_code = "inherit"
    config.model.pool = "mean"  # mean of the patch tokens, then fc_norm | cls token after norm
    config.model.drop_path = 0.1  # 0.2 for ViT-H
    config.model.probe = False  # BatchNorm without affine parameters before the head
    config.model.head_init = 2e-5
    for name in ("dtype", "attention", "remat"):
        config.model[name] = model[name]

    config.data.split = "train"
    # A split of the manifest, or of sub-folders; "": taken from data.split, whole patients at a time; "auto": the
    # first where there is one, else the second. "none": there is no test split.
    config.data.val_split = "val"
    config.data.test_split = "test"
    config.data.split_seed = (
        0  # of the splits made here and of data.fraction; config.seed is of the training
    )
    config.data.folds = 5  # 5 folds are the papers' 3:1:1
    config.data.fold = 0
    config.data.balance = "none"  # none | sampling: classes equally often | loss: weighted by class
    config.data.positive = ""  # of two classes; "": the last in alphabetical order
    config.data.crop_scale = (0.08, 1.0)
    config.data.max_side = -1  # as in init_from
    config.data.bits16 = "inherit"
    config.data.crop_rejection = (
        True  # False: crops that do not fit are cut to the image (linear probe)
    )

    config.augment = ConfigDict()
    config.augment.rand_augment = "rand-m9-mstd0.5-inc1"  # "": none
    config.augment.erase_probability = 0.25

    config.search = ConfigDict()
    # How the blur of each image is found: auto | none | fixed(0.5) | search(2) | online(2) | random | oracle
    config.search.setting = "auto"
    config.search.batch_size = 64  # images times levels at once
    config.search.cache = "auto"  # folder of results kept between runs; "": nowhere

    config.select = ConfigDict()
    config.select.metric = "accuracy"  # on the validation images; any measure of the report
    config.select.patience_epochs = 0.0  # stop so long after the best; 0: never

    config.optim.batch_size = 256
    config.optim.epochs = 100.0
    config.optim.warmup_epochs = 5.0
    config.optim.base_lr = 1e-3
    config.optim.min_lr = 1e-6
    config.optim.b2 = 0.999
    config.optim.layer_decay = 0.75
    config.optim.decay_on = (
        "weights"  # weights | weights_and_tokens | all: what weight decay acts on
    )
    config.optim.schedule = "cosine"  # cosine | constant after the warm-up

    config.checkpoint.every_epochs = 5.0
    config.report.every_epochs = 1.0  # how often the validation images are judged
    config.report.bootstrap = 1000  # resamples of the intervals
    config.report.audit = "near"  # near: also compare perceptual hashes of the splits | identical

    if recipe == "repo":
        config.task.mixup = config.task.cutmix = 0.0
        config.optim.weight_decay = 0.01
        config.optim.layer_decay = 1.0
        config.optim.decay_on = "all"
        config.optim.schedule = "constant"
        config.optim.epochs = 10_000.0
        config.select.patience_epochs = 200.0
    elif recipe != "paper":
        raise ValueError(f"--config: unknown recipe '{recipe}'. Choices: paper, repo.")
    return config


def linear_probe() -> ConfigDict:
    """A linear classifier on the frozen encoder (He et al. 2022, table 10): LARS, plain crops."""
    config = get_config()
    config.task.frozen = True
    config.task.label_smoothing = config.task.mixup = config.task.cutmix = 0.0
    config.data.crop_rejection = False
    config.model.pool = "cls"
    config.model.drop_path = 0.0
    config.model.probe = True
    config.model.head_init = 0.01
    config.augment.rand_augment = ""
    config.augment.erase_probability = 0.0
    config.optim.name = "lars"
    config.optim.batch_size = 1024
    config.optim.base_lr = 0.1
    config.optim.min_lr = 0.0
    config.optim.weight_decay = 0.0
    config.optim.epochs = 90.0
    config.optim.warmup_epochs = 10.0
    return config
