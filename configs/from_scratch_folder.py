"""The same classifier without pre-training, for comparison.

    python main.py --config=configs/from_scratch_folder.py --config.data.root=/my/labelled --workdir=runs/scratch

To compare with a pre-trained network give it that network's size, e.g. --config.model.variant=S.
"""

from configs import transfer


def get_config():
    """MAE's recipe for training from scratch, shortened: no layer decay, longer warm-up."""
    config = transfer.get_config()
    config.data.split = "train+pool"
    config.data.val_split = "auto"
    config.data.test_split = "auto"
    config.optim.batch_size = 32
    config.optim.layer_decay = 1.0
    config.optim.warmup_epochs = 10.0
    config.optim.epochs = 200.0
    return config
