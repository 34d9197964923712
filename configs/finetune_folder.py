"""Fine-tune on your own labelled images: a folder with one sub-folder per class, or a CSV manifest.

    python main.py --config=configs/finetune_folder.py --config.init_from=runs/d2mae \\
      --config.data.root=/my/labelled --workdir=runs/classifier

Without named splits, 3:1:1 are made, stratified and whole patients at a time (a manifest with a column
`group` says who is who). With a manifest that has a column `split`:

    --config.data.name=manifest --config.data.root=list.csv --config.data.val_split=val --config.data.test_split=test

`--config=configs/finetune_folder.py:repo` is the recipe of the published code.
"""

from configs import transfer


def get_config(recipe="paper"):
    """The MAE recipe at batch 32, as in D2MAE."""
    config = transfer.get_config(recipe)
    config.data.split = "train+pool"
    config.data.val_split = ""
    config.data.test_split = ""
    config.optim.batch_size = 32
    return config
