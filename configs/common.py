"""Defaults shared by all runs. A config file changes what its method needs; the command line the rest."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Pre-training with the MAE recipe, ViT-B/16 at 224 pixels, one gray channel."""
    config = ConfigDict()
    config.seed = 0
    config.image_size = 224
    # Where compiled programs are kept between runs: "auto" is the user's cache folder, "" is nowhere.
    config.compilation_cache = "auto"

    # Weights to start from: the workdir of a run, or a file of ours, MAE, DeblurringMIM, timm or Hugging Face; "": none.
    config.init_from = ""
    config.init_strict = True  # False: take what fits and leave the rest

    config.task = ConfigDict()
    config.task.name = "masked_recon"
    # What is done to the input, "|" between several: blur.gaussian(sigma=1.1), speckle.srad(40, 0.1),
    # blur.mean(5), blur.median(5), blur.motion(5), blur.defocus(5), noise.gaussian_noise(0.25), none.
    config.task.degrade = "none"
    # "native": before the crop, in the image's own pixels (published code); "network": after the resize.
    config.task.blur_site = "native"
    config.task.target = "clean"  # clean | degraded
    config.task.loss_on = "all"  # all | masked patches
    config.task.mask_ratio = 0.75
    config.task.norm_pix_loss = False

    config.model = ConfigDict()
    config.model.name = "vit_mae"
    config.model.variant = "B"  # Ti | S | B | L | H
    config.model.patch_size = 16
    config.model.in_chans = 1  # the published models have 3, all equal for gray images
    config.model.embed_dim = 0  # 0: as the variant says; likewise depth and num_heads
    config.model.depth = 0
    config.model.num_heads = 0
    config.model.decoder_embed_dim = 512
    config.model.decoder_depth = 8
    config.model.decoder_num_heads = 16
    config.model.conditioning = "none"  # none | addition | token: how the level reaches the network
    config.model.level_code = "learned"  # learned | sinusoid | table | mlp
    config.model.decoder_level_token = True
    config.model.dtype = "auto"  # bfloat16 on accelerators, float32 on CPU
    config.model.attention = "auto"  # auto | xla | cudnn | triton | by_image
    config.model.remat = False  # recompute activations in the backward pass to save memory

    config.data = ConfigDict()
    config.data.name = "image_folder"  # image_folder | manifest | tfds_source | phantoms
    config.data.root = ""
    config.data.split = "train+pool"  # of a manifest; TFDS has its own syntax
    config.data.fraction = 1.0  # of the images, chosen by the seed
    config.data.tfds_name = ""
    config.data.num_images = 600  # of phantoms, `side` pixels high
    config.data.side = 160
    config.data.phantom_seed = 0
    config.data.mean = ()  # of the 0..1 grey scale; (): ImageNet's, averaged over colours for gray
    config.data.std = ()
    config.data.crop_scale = (0.2, 1.0)
    config.data.crop_ratio = (3 / 4, 4 / 3)
    config.data.flip = True
    config.data.gray_target = False  # only matters with three channels
    config.data.store = "auto"  # auto | resident | streaming
    config.data.num_threads = 4
    config.data.num_workers = 0  # processes that read ahead in the streaming store; 0: threads do
    config.data.check = "pixels"  # pixels: decode every file before training | header
    config.data.max_bad_fraction = 0.2  # stop when more of the files cannot be used
    config.data.max_pixels = 50_000_000
    config.data.max_side = 1024  # larger images are shrunk to this when they are read; 0: never
    config.data.min_side = 16
    config.data.bits16 = "minmax"  # minmax | full: how 16-bit grey levels become 8-bit

    config.optim = ConfigDict()
    config.optim.name = "adamw"
    config.optim.batch_size = 256  # over all devices and accumulation steps
    config.optim.accum_steps = 1
    config.optim.epochs = 800.0
    config.optim.steps = 0  # if set, replaces epochs, and the warm-up is at most a tenth of it
    config.optim.warmup_epochs = 40.0
    config.optim.base_lr = 1.5e-4  # x batch_size / 256
    config.optim.min_lr = 0.0
    config.optim.b1 = 0.9
    config.optim.b2 = 0.95
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 0.0  # 0: no clipping

    config.checkpoint = ConfigDict()
    config.checkpoint.every_epochs = 10.0
    config.checkpoint.keep_last = 2
    config.checkpoint.keep_every = 0  # steps; these are never deleted

    config.log = ConfigDict()
    config.log.every_steps = 20
    config.log.tensorboard = True

    config.report = ConfigDict()
    config.report.every_epochs = 100.0
    config.report.num_images = 8  # shown
    config.report.num_eval_images = 64  # measured
    config.report.eval_split = ""  # of a manifest; "": images of the training set
    return config
