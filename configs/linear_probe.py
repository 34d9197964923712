r"""Linear probe of a frozen encoder, MAE's recipe: LARS, BatchNorm without affine parameters, plain crops.

    python main.py --config=configs/linear_probe.py --config.init_from=runs/d2mae \
      --config.data.root=/my/labelled --workdir=runs/linear

`linear_probe.py:thyroid`, `:ovary` and `:pancreas` use the settings for the papers' data sets (see `finetune.py`).
`linear_probe.py:beit`, `:convvit`, `:resnet`, `:convnext` and `:swin` probe the other networks, which have no BatchNorm
before the classifier; `--config.model.variant` is the size, as in their own configs.
"""

from deblur_mae_jax.config import PROBED, linear_probe, on_organ, pick


def get_config(arguments=""):
    """Base rate 0.1 at batch 1024, 90 epochs, 10 of them warm-up."""
    organ, network = pick(arguments, ("folder", "thyroid", "ovary", "pancreas"), tuple(PROBED))
    return on_organ(linear_probe(network), organ)
