"""Linear probe of a frozen encoder, MAE's recipe: LARS, BatchNorm without affine parameters, plain crops.

    python main.py --config=configs/linear_probe_folder.py --config.init_from=runs/d2mae \\
      --config.data.root=/my/labelled --workdir=runs/linear
"""

from configs import transfer


def get_config():
    """Base rate 0.1 at batch 1024, 90 epochs, 10 of them warm-up."""
    config = transfer.linear_probe()
    config.data.split = "train+pool"
    config.data.val_split = "auto"
    config.data.test_split = "auto"
    return config
