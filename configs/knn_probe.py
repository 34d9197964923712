r"""Nearest neighbours on frozen features: a first look at what an encoder has learned, in a minute.

    python main.py --config=configs/knn_probe.py --config.init_from=runs/d2mae \
      --config.data.root=/my/labelled --workdir=runs/knn

`--config.probe.kind=logistic` fits a logistic regression instead. `knn_probe.py:thyroid`, `:ovary` and
`:pancreas` use the settings for the papers' data sets (see `finetune.py`).
"""

from deblur_mae_jax.config import on_organ, pick, probe


def get_config(arguments=""):
    """The nearest neighbours by cosine, weighted by inverse distance; their number is chosen on the validation images."""
    (organ,) = pick(arguments, ("folder", "thyroid", "ovary", "pancreas"))
    return on_organ(probe(), organ)
