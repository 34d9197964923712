"""Defaults of pre-training on CT and MR volumes with a Swin-UNETR."""

from ml_collections import ConfigDict

from configs import common


def get_config(preset: str = "paper") -> ConfigDict:
    """Disruptive Autoencoders (MIDL 2024), all disruptions, at the sizes and rates of the paper.

    preset: "paper", or "upstream" for what the published commands and code do: nearest-neighbour resampling, channels masked alike
    in a whole batch, the rates of its README. Two of its bugs are not reproduced: its contrast is meaningless (see
    `--config.task.contrast=code`), and its axes are scrambled (`--config.model.layout=as_coded`).
    """
    config = common.get_config()
    config.image_size = 96  # voxels of a cube's side

    config.task = ConfigDict()
    config.task.name = "disrupted_recon"
    # Noise, then down and up, as coded; the paper says they are added. The 0.1 is a variance.
    config.task.degrade = "noise.gaussian_noise(variance=0.1, clip=False)|resample.down_up(4)"
    config.task.local_mask = (
        0.6  # share of the channels of the patch embedding that are set to zero
    )
    config.task.local_mask_scope = (
        "sample"  # batch | sample | token: who shares one choice of channels
    )
    config.task.block_mask_ratio = 0.0  # of 16-voxel blocks, replaced by the mask token (3-D MAE)
    config.task.loss_on = "all"  # all | masked blocks
    config.task.contrast = "paper"  # paper | bce | code | none: contrast of modalities
    config.task.contrast_weight = 0.05
    config.task.temperature = 0.07

    model = config.model
    config.model = ConfigDict()
    config.model.name = "swin_unetr"
    config.model.variant = "48"  # 12 | 24 | 48: channels of the first stage
    config.model.feature_size = (
        0  # another width; 0: as the variant says; likewise () for the next two
    )
    config.model.depths = ()
    config.model.num_heads = ()
    config.model.in_chans = 1
    config.model.out_chans = 1
    config.model.patch_embed = "unet_basic"  # unet_basic (DAE) | conv (MONAI)
    config.model.merge_order = "legacy"  # legacy (DAE, MONAI up to 1.4) | monai15 | v2
    config.model.normalize = False  # LayerNorm on what the decoder gets (MONAI)
    config.model.skip_input = (
        "disrupted"  # disrupted | none: what the full-resolution skip connection sees
    )
    config.model.layout = "intended"  # intended | as_coded
    config.model.mask_token = False
    config.model.dtype = model.dtype
    config.model.remat = False

    data = config.data
    config.data = ConfigDict()
    config.data.name = "nifti"  # nifti | phantoms3d
    # Folders or CSVs joined by ";", each may say its modality: "/data/lung=ct;/data/brain=mr".
    config.data.root = ""
    config.data.ratio = ""  # of the modalities drawn, such as "ct=1,mr=3"; "": as they are
    config.data.spacing = ()  # mm, such as (2.0, 2.0, 2.0); (): the files' own
    config.data.ct_window = (-1000.0, 1000.0)
    config.data.decoded = ""  # a folder where decoded volumes are kept between epochs and runs
    config.data.side = 64  # of phantoms
    for name in ("split", "fraction", "num_images", "phantom_seed", "store", "num_threads", "num_workers",
                 "check", "max_bad_fraction"):  # fmt: skip
        config.data[name] = data[name]
    config.data.max_pixels = 500_000_000  # voxels of a volume

    config.optim.batch_size = 16
    config.optim.scale_lr = False  # base_lr is not multiplied by batch_size / 256
    config.optim.base_lr = 4e-4
    config.optim.min_lr = 0.0
    config.optim.warmup_lr = 0.0
    config.optim.warmup_steps = 500
    config.optim.steps = 20_000
    config.optim.weight_decay = 1e-5
    config.optim.b2 = 0.999
    config.optim.clip_norm = 1.0
    config.optim.decay_on = "weights"
    config.optim.schedule = "timm"
    config.report.num_images = 2
    config.report.num_eval_images = 4

    if preset == "upstream":
        config.task.degrade = (
            "noise.gaussian_noise(variance=0.1, clip=False)|resample.down_up(4, method='nearest')"
        )
        config.task.local_mask_scope = "batch"
        config.task.contrast_weight = 0.03
        config.task.temperature = 0.5
        config.optim.base_lr, config.optim.min_lr, config.optim.warmup_lr = 1e-4, 1e-5, 1e-6
        config.optim.weight_decay = 0.05
        config.optim.steps, config.optim.epochs = 0, 1000.0
        config.optim.warmup_epochs = 4.0
    elif preset != "paper":
        raise ValueError(f"--config: unknown preset '{preset}'. Choices: paper, upstream.")
    return config


def pretext() -> ConfigDict:
    """The three-part pre-training of Swin-UNETR (Tang et al. 2022) at the size and rates of DAE's paper."""
    config = get_config()
    config.task = ConfigDict()
    config.task.name = "pretext"
    config.task.degrade = "none"  # the views are made by the task
    config.task.rotation_weight = 1.0
    config.task.contrast_weight = 1.0
    config.task.reconstruction_weight = 1.0
    config.task.temperature = 0.5
    config.model.name = "swin_ssl"
    config.model.rebuilds = True  # whether there is a decoder for the reconstruction
    config.model.patch_embed = "conv"
    for name in ("out_chans", "normalize", "skip_input", "mask_token"):
        del config.model[name]
    return config
