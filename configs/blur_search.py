r"""Optimal blurriness search (D2MAE, Algorithm 1) over a set of images.

    python main.py --config=configs/blur_search.py --config.init_from=runs/d2mae \
      --config.data.root=/my/images --workdir=runs/search

Writes the best level, its sigma and the loss at every level for each image, a histogram over the set, and strips
that show single images. Results are cached by image content and weights, so a second search, here or in
fine-tuning, is only a lookup. Paper: step 2 (GE4K F1 89.84; step 1 89.94, step 3 89.05).
"""

from deblur_mae_jax import config as fields


def get_config():
    """The paper's step of 2 levels."""
    config = fields.blur_search()
    config.search.setting = "search(2)"
    config.data.split = "all"
    return config
