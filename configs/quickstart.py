"""A small D2MAE on simulated B-mode phantoms: no download, about two minutes on two CPU cores.

    python main.py --config=configs/quickstart.py --workdir=runs/quickstart

For a first look and for tests, not for science. It differs from the paper so that the deblurring is visible after two
minutes: 64-pixel images of coarse phantoms, blur up to sigma 4 applied after the resize, half of the patches masked instead of
75 %, and a wide, shallow network at a high learning rate. The report is measured on
unseen phantoms. Expected on them, without masking: from sigma 1.6 on, the reconstruction is closer to the original than
the blurred input, by PSNR and SSIM; below sigma 1.2 it is not. `--config.task.mask_ratio=0.75` masks as the
paper does; after such a short training the network then undoes only the strongest blur.
"""

from deblur_mae_jax.config import pretraining


def get_config():
    """64-pixel images, 8-pixel patches, ten levels of blur."""
    config = pretraining()
    config.image_size = 64
    config.task.degrade = "blur.gaussian_levels(max_sigma=4.0, step=0.4, kernel='opencv_float')"
    config.task.blur_site = "network"
    config.task.mask_ratio = 0.5
    config.model.patch_size = 8
    config.model.embed_dim = 192
    config.model.depth = 1
    config.model.num_heads = 4
    config.model.decoder_embed_dim = 192
    config.model.decoder_depth = 1
    config.model.decoder_num_heads = 4
    config.model.conditioning = "token"
    config.data.name = "phantoms"
    config.data.num_images = 600
    config.data.side = 72
    config.data.crop_scale = (0.5, 1.0)
    config.data.num_threads = 2
    config.optim.batch_size = 16
    config.optim.base_lr = 4e-2
    config.optim.b2 = 0.99
    config.optim.steps = 1400
    config.checkpoint.every_epochs = 15.0
    config.report.every_epochs = 15.0
    config.report.eval_split = "unseen"
    return config
