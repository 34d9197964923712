r"""Fine-tune a BEiT: a ViT with relative positions, from SimMIM's, BEiT's or USFM's weights or from scratch.

    python main.py --config=configs/beit.py --config.init_from=runs/simmim_beit --config.data.root=/my/labelled \
      --workdir=runs/beit

Data sets and splits as in `finetune.py`: folder, thyroid, ovary, pancreas. `init_from` is a run of
`configs/simmim.py:beit`, or a weight file of BEiT, SimMIM, USFM or timm (`beit_base_patch16_224`).

    beit.py:upstream    the recipe of DeblurringMIM's code
    USFM's own recipe          --config.optim.epochs=200 --config.optim.batch_size=64
"""

from deblur_mae_jax.config import beit, on_organ, pick


def get_config(arguments=""):
    """SimMIM's fine-tuning: layer decay 0.65, 20 epochs of warm-up, 100 epochs; batch 32 as for the other networks."""
    organ, preset = pick(arguments, ("folder", "thyroid", "ovary", "pancreas"), ("paper", "upstream"))
    config = on_organ(beit(preset), organ)
    config.optim.batch_size = 32
    return config
