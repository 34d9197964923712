"""DINOv2 (Oquab et al. 2023) in a light form, with or without deblurring: the strong self-supervised baseline of today.

    python main.py --config=configs/dino_v2.py --config.data.root=/my/images --workdir=runs/dino_v2

    dino_v2.py           DINO's, iBOT's and KoLeo's losses; two crops of 224 pixels and eight of 96
    dino_v2.py:deblur    the student sees blurred crops, the teacher clean ones

Fine-tune it with `configs/finetune.py`, which takes the teacher's encoder.
Deviations: 4,096 prototypes instead of 65,536; no layer scale; constant weight decay of 0.1 instead of 0.04 to 0.4,
and none for tokens, positions and the last layers; gradients clipped to 3 over all networks together, not over each;
MAE's initial weights and sin-cos positions, which are trained;
random masked patches instead of blocks; the last layers of the heads are trained from the first epoch; the same
learning rate for the patch embedding and all blocks as for the rest; drop path 0.1. As in DINOv2's large networks, the teacher's prototypes are
balanced by Sinkhorn and Knopp's iteration.
The learning rate is that of batch 1,024 and does not follow the batch: DINOv2 scales it by the root of batch / 1,024.
Cost: 303 GFLOP per image; on a CPU a step takes 1.6 times as long as one of MoCo v3.
"""

from deblur_mae_jax.config import dino_v2, pick


def get_config(arguments=""):
    """DINOv2's rate of 4e-3 at batch 1,024 and warm-up of a tenth, for as many images as the other pre-trainings."""
    (input_,) = pick(arguments, ("clean", "deblur"))
    config = dino_v2()
    config.optim.epochs = 12000.0
    config.optim.warmup_epochs = 1200.0
    if input_ == "deblur":
        config.task.degrade = "blur.gaussian(sigma=1.1)"
    return config
