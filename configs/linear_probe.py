"""Linear probe of a frozen encoder, MAE's recipe: LARS, BatchNorm without affine parameters, plain crops.

    python main.py --config=configs/linear_probe.py --config.init_from=runs/d2mae \\
      --config.data.root=/my/labelled --workdir=runs/linear

`linear_probe.py:thyroid`, `:ovary` and `:pancreas` use the settings for the papers' data sets (see `finetune.py`).
"""

from deblur_mae_jax.config import linear_probe, on_organ, pick


def get_config(arguments=""):
    """Base rate 0.1 at batch 1024, 90 epochs, 10 of them warm-up."""
    (organ,) = pick(arguments, ("folder", "thyroid", "ovary", "pancreas"))
    return on_organ(linear_probe(), organ)
