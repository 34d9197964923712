"""DiffMAE pre-training (Wei et al. 2023): a row of D2MAE's table.

    python main.py --config=configs/diffmae.py --config.data.root=/my/images --workdir=runs/diffmae

D2MAE's table 2 gives F1 85.59, 83.43 and 70.47 on GE4K, LEPset and MMOTU, below MAE pre-trained on ultrasound on all
three. It states no settings; ours are those of `mae_thyroid.py`: 12,000 epochs at batch 256.

    diffmae.py           masked patches are denoised, given the visible ones
    diffmae.py:deblur    the visible patches are blurred too

No code of DiffMAE was published. What the paper leaves open is a field: how the strength of the noise is told to the
network (--config.model.time), and which encoder blocks the decoder sees (--config.model.skip).
Expected cost: 56 GFLOP per image with one channel.
"""

from deblur_mae_jax.config import diffmae, pick


def get_config(arguments=""):
    """MAE's optimiser; crops and flips only."""
    (input_,) = pick(arguments, ("clean", "deblur"))
    config = diffmae()
    config.optim.epochs = 12000.0
    if input_ == "deblur":
        config.task.degrade = "blur.gaussian(sigma=1.1)"
    return config
