"""Fine-tune the network of `quickstart.py` to classify benign- and malignant-like phantoms, and write a report.

    python main.py --config=configs/quickstart_finetune.py --workdir=runs/quickstart_classifier

The simulated patients differ from those of pre-training. First the optimal blur of each image is searched (D2MAE). Then
the classifier is fine-tuned, its weights are chosen on validation patients, and it is evaluated once on test patients.
"""

from deblur_mae_jax.config import finetuning


def get_config():
    """A short fine-tuning: no mixup, cutmix or random erasing, which help only after hundreds of epochs."""
    config = finetuning()
    config.init_from = "runs/quickstart"
    config.task.mixup = config.task.cutmix = 0.0
    config.data.name = "phantoms"
    config.data.num_images = 600
    config.data.phantom_seed = 1
    config.data.num_threads = 2
    config.data.val_split = ""
    config.data.test_split = ""
    config.data.crop_scale = (0.6, 1.0)
    config.model.drop_path = 0.0
    config.augment.rand_augment = ""
    config.augment.erase_probability = 0.0
    config.select.metric = "auroc"
    config.optim.batch_size = 32
    config.optim.base_lr = 8e-3
    config.optim.epochs = 15.0
    config.report.every_epochs = 1.5
    # Phantoms are drawn one by one. Their speckle is random, and perceptual hashes find copies where there are none.
    config.report.audit = "identical"
    return config
