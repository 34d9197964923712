r"""ResNet-50 or -101, supervised, from ImageNet's weights or from scratch: a row of the papers' tables.

    python main.py --config=configs/resnet.py:101 --config.init_from=weights/resnet101.tv_in1k \
      --config.data.root=/my/labelled --workdir=runs/101

Sizes: 50 (the default) and 101. Data sets and splits as in `finetune.py`: folder, thyroid, ovary, pancreas.
`init_from` is a weight file or folder of timm or torchvision. Without it the network starts from scratch.

    resnet.py:101,thyroid    GE4K, 4,494 images: ResNet-101 without pre-training 86.06, 83.18, 91.96 (accuracy, F1, AUROC)
    resnet.py:101,own        the same: its paper has no fine-tuning recipe
    resnet.py:101,upstream   the recipe of the published code
    resnet.py:small          a ResNet of `simclr.py:small`, at 96 pixels, by the recipe of `finetune.py:small`

The input can be blurred as for the pre-trained networks: --config.task.degrade="blur.gaussian(sigma=1.1)".
"""

from deblur_mae_jax.config import backbones, on_organ, pick

SIZES = {"50": "50", "101": "101"}


def get_config(arguments=""):
    """MAE's fine-tuning recipe at batch 32, as for all networks of the tables."""
    choices = (tuple(SIZES), ("folder", "thyroid", "ovary", "pancreas"), ("paper", "own", "upstream", "small"))
    size, organ, preset = pick(arguments, *choices)
    config = on_organ(backbones("resnet", SIZES[size], preset), organ)
    config.optim.batch_size = 32
    return config
