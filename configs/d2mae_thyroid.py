"""D2MAE pre-training for thyroid ultrasound (MICCAI 2025).

    python main.py --config=configs/d2mae_thyroid.py --config.data.root=/my/images --workdir=runs/d2mae

The paper: ViT-B/16, 10,675 images, 8,000 epochs at batch 1,024 (80,000 steps); then, fine-tuned on GE4K with the optimal blurriness
search: accuracy 90.38, F1 89.84, AUROC 96.21 (its F1 is macro, while the GE4K rows it compares with are binary F1).
Expected cost: 59 GFLOP per image with three channels, 4.9e18 in all.

Ablations of the paper's table 3, each one override:
  range      --config.task.degrade="blur.gaussian_levels(max_sigma=0.6)"      or 1.6
  step       --config.search.setting="search(1)"                              or "search(3)", of the fine-tuning
  embedding  --config.model.conditioning=none                                 or addition

`d2mae_thyroid.py:warm_start` starts from the weights of another network (--config.init_from): ImageNet's MAE, a timm or Hugging Face ViT, a
DeblurrMAE. At its start the run prints which weights are loaded, converted, left out
and new. Training for a tenth of the epochs is our choice, not the paper's.
Checkpoints of MAE's authors that include the decoder are named `mae_visualize_*`.
`d2mae_thyroid.py:small` pre-trains a small network on a CPU: a ViT 192 wide and 6 deep at 96 pixels, 4,000 steps at batch 64, with the
levels sigma = 0.2 t after the resize.
Fine-tune it with configs/finetune.py:small.

Deviation: one gray channel (--config.model.in_chans=3 for the paper's three).
"""

from deblur_mae_jax.config import pick, pretraining


def get_config(arguments=""):
    """Levels sigma = 0.1 t, t = 1..11, drawn per image and given to the network as a token."""
    (start,) = pick(arguments, ("from_scratch", "warm_start", "small"))
    size = "small" if start == "small" else "paper"
    config = pretraining(size)
    config.task.degrade = "blur.gaussian_levels(max_sigma=1.1, step=0.1)"
    config.model.conditioning = "token"
    if size == "small":
        config.task.degrade = "blur.gaussian_levels(max_sigma=2.2, step=0.2, kernel='opencv_float')"
    else:
        config.optim.batch_size = 1024
    config.optim.epochs = 8000.0 if start != "warm_start" else 800.0
    config.checkpoint.every_epochs = 50.0
    return config
