"""From the network of `quickstart.py` to a classifier of benign- and malignant-like phantoms, with its report.

    python main.py --config=configs/quickstart_finetune.py --workdir=runs/quickstart_classifier

Other simulated patients than in pre-training. The blur of each image is searched first (D2MAE), then the
classifier is fine-tuned, chosen on validation patients and judged once on test patients.
"""

from deblur_mae_jax.config import finetuning


def get_config():
    """A short fine-tuning: no mixing or erasing, which need hundreds of epochs to pay."""
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
    config.report.bootstrap = 500
    return config
