"""The classifier of `finetune.py` without pre-training, for comparison.

    python main.py --config=configs/from_scratch.py --config.data.root=/my/labelled --workdir=runs/scratch

`from_scratch.py:thyroid`, `:ovary` and `:pancreas` use the settings for the papers' data sets.
To compare with a pre-trained network, use
that network's size, such as --config.model.variant=S.
"""

from deblur_mae_jax.config import finetuning, on_organ, pick


def get_config(arguments=""):
    """MAE's recipe for training from scratch, shortened: no layer decay, longer warm-up."""
    (organ,) = pick(arguments, ("folder", "thyroid", "ovary", "pancreas"))
    config = on_organ(finetuning(), organ)
    config.optim.batch_size = 32
    config.optim.layer_decay = 1.0
    config.optim.warmup_epochs = 10.0
    config.optim.epochs = 200.0
    return config
