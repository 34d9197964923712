r"""ConvNeXt, supervised, from ImageNet's weights or from scratch: a row of the papers' tables.

    python main.py --config=configs/convnext.py:l --config.init_from=weights/convnext_large.fb_in22k_ft_in1k \
      --config.data.root=/my/labelled --workdir=runs/l

Sizes: t (the default), s, b and l. Data sets and splits as in `finetune.py`: folder, thyroid, ovary, pancreas.
`init_from` is a weight file or folder of timm, or of torchvision or Facebook's code under their own names. Without it
the network starts from scratch.

    convnext.py:l,thyroid    GE4K, 4,494 images: ConvNeXt-L from ImageNet 87.76, 85.47, 93.22 (accuracy, F1, AUROC)
    convnext.py:l,own        layer-wise rates and drop path of its paper
    convnext.py:l,upstream   the recipe of the published code

The input can be blurred as for the pre-trained networks: --config.task.degrade="blur.gaussian(sigma=1.1)".
"""

from deblur_mae_jax.config import backbones, on_organ, pick

SIZES = {"t": "T", "s": "S", "b": "B", "l": "L"}


def get_config(arguments=""):
    """MAE's fine-tuning recipe at batch 32, as for all networks of the tables."""
    choices = (tuple(SIZES), ("folder", "thyroid", "ovary", "pancreas"), ("paper", "own", "upstream"))
    size, organ, preset = pick(arguments, *choices)
    config = on_organ(backbones("convnext", SIZES[size], preset), organ)
    config.optim.batch_size = 32
    return config
