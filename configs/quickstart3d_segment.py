"""Fine-tune the network of `quickstart3d.py` to segment two organs in simulated CT and MR volumes, and write a report.

    python main.py --config=configs/quickstart3d_segment.py --workdir=runs/quickstart3d_segmenter

The simulated volumes differ from those of pre-training. Weights are chosen on validation volumes and
evaluated once on test volumes. Expected: Dice 0.74 to 0.77 for the large organ and 0.48 to 0.54 for the small
one (five runs). So that this takes minutes on a CPU, batches hold one cube, the loss is Dice without the background, and
nothing is flipped or rotated. Each volume is a single window, so no windows are blended.
"""

from deblur_mae_jax.config import volume_segmentation


def get_config():
    """A short training."""
    config = volume_segmentation()
    config.init_from = "runs/quickstart3d"
    config.data.name = "phantoms3d"
    config.data.num_images = 30
    config.data.side = 32
    config.data.phantom_seed = 1
    config.data.num_threads = 2
    config.data.label_names = ("large organ", "small organ")
    config.data.crops_per_image = 1
    config.task.loss = "dice"
    config.task.include_background = False
    config.augment.flip_probability = 0.0
    config.augment.rotate_probability = 0.0
    config.optim.batch_size = 1
    config.optim.base_lr = 1e-2
    config.optim.epochs = 25.0
    config.optim.warmup_epochs = 1.0
    config.infer.batch_size = 1
    config.checkpoint.every_epochs = 12.5
    config.report.every_epochs = 6.25
    config.log.every_steps = 10
    return config
