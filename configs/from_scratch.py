"""The classifier of `finetune.py` without pre-training, for comparison.

    python main.py --config=configs/from_scratch.py --config.data.root=/my/labelled --workdir=runs/scratch

`from_scratch.py:thyroid`, `:ovary` and `:pancreas` use the settings for the papers' data sets.
To compare with a pre-trained network, use
that network's size, such as --config.model.variant=S.
`from_scratch.py:small` is the network and the recipe of `d2mae_thyroid.py:small` and `finetune.py:small`, with the same
15 epochs, so that only the pre-training differs.
"""

from deblur_mae_jax.config import finetuning, on_organ, pick


def get_config(arguments=""):
    """MAE's fine-tuning recipe without layer decay, and with a longer warm-up."""
    organ, preset = pick(arguments, ("folder", "thyroid", "ovary", "pancreas"), ("paper", "small"))
    config = on_organ(finetuning(preset, scratch=True), organ)
    config.optim.batch_size = 32
    if preset == "paper":
        config.optim.layer_decay = 1.0
        config.optim.warmup_epochs = 10.0
        config.optim.epochs = 200.0
    return config
