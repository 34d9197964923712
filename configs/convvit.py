r"""Fine-tune a ConvViT that ConvMAE or Deblurring ConvMAE has pre-trained, or train it from scratch.

    python main.py --config=configs/convvit.py --config.init_from=runs/convmae --config.data.root=/my/labelled \
      --workdir=runs/convvit

Data sets and splits as in `finetune.py`: folder, thyroid, ovary, pancreas. `init_from` also reads weight files of
ConvMAE and of DeblurringMIM. A run without `init_from` starts from scratch.

    convvit.py:upstream    the recipe of DeblurringMIM's code
"""

from deblur_mae_jax.config import convvit, on_organ, pick


def get_config(arguments=""):
    """ConvMAE's fine-tuning: base learning rate 5e-4, layer decay 0.65, 100 epochs; batch 32 as for the other networks."""
    organ, preset = pick(arguments, ("folder", "thyroid", "ovary", "pancreas"), ("paper", "upstream"))
    config = on_organ(convvit(preset), organ)
    config.optim.batch_size = 32
    return config
