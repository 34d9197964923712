"""A small D2MAE on simulated B-mode phantoms: no download, about two minutes on two CPU cores.

    python main.py --config=configs/quickstart.py --workdir=runs/quickstart

For a first look and for tests, not for science. It differs from the paper in size (a ViT of width 128
on 64-pixel images), in the blur, which is stronger and applied after the resize so that the eye can see it
undone, and in the learning rate.
"""

from configs import common


def get_config():
    """64-pixel images, 8-pixel patches, blur up to sigma 2.2 in network pixels."""
    config = common.get_config()
    config.image_size = 64
    config.task.degrade = "blur.gaussian_levels(max_sigma=2.2, step=0.2, kernel='opencv_float')"
    config.task.blur_site = "network"
    config.model.patch_size = 8
    config.model.embed_dim = 128
    config.model.depth = 3
    config.model.num_heads = 4
    config.model.decoder_embed_dim = 96
    config.model.decoder_depth = 2
    config.model.decoder_num_heads = 4
    config.model.conditioning = "token"
    config.data.name = "phantoms"
    config.data.num_images = 600
    config.data.num_threads = 2
    config.optim.batch_size = 32
    config.optim.base_lr = 1.2e-2
    config.optim.steps = 900
    config.checkpoint.every_epochs = 15.0
    config.report.every_epochs = 15.0
    return config
