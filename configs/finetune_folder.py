"""Fine-tune on your own labelled images: a folder with one sub-folder per class, or a CSV manifest.

    python main.py --config=configs/finetune_folder.py --config.init_from=runs/d2mae \\
      --config.data.root=/my/labelled --workdir=runs/classifier

Splits called train, val and test (sub-folders, or the column `split` of a manifest) are used; those that are not there
are made, 3:1:1, stratified and whole patients at a time (the column `group` of a manifest says who is who).

    --config.data.name=manifest --config.data.root=list.csv

`--config=configs/finetune_folder.py:repo` is the recipe of the published code.
"""

from configs import transfer


def get_config(recipe="paper"):
    """The MAE recipe at batch 32, as in D2MAE."""
    config = transfer.get_config(recipe)
    config.data.split = "train+pool"
    config.data.val_split = "auto"
    config.data.test_split = "auto"
    config.optim.batch_size = 32
    return config
