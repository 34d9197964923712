"""Disruptive Autoencoders on simulated CT and MR volumes, a small network: a demo for a laptop.

    python main.py --config=configs/quickstart3d.py --workdir=runs/quickstart3d

Expected: L1 error 0.125, where predicting each cube's median gives 0.202. The training is too short for the reconstructions to have a better PSNR than their input.
"""

from deblur_mae_jax.config import volumes


def get_config():
    """Cubes of 32, 12 channels."""
    config = volumes()
    config.image_size = 32
    config.model.variant = "12"
    config.model.depths = (1, 1, 1, 1)
    config.model.num_heads = (1, 2, 4, 8)
    config.data.name = "phantoms3d"
    config.data.num_images = 48
    config.data.side = 32
    config.optim.batch_size = 2
    config.optim.base_lr = 2e-3
    config.optim.steps = 100
    config.optim.warmup_steps = 10
    config.checkpoint.every_epochs = 5.0
    config.report.every_epochs = 2.0
    config.log.every_steps = 10
    return config
