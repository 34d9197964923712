"""DeblurrMAE pre-training for thyroid ultrasound (MICCAI 2023).

    python main.py --config=configs/deblur_mae_thyroid.py --config.data.root=/my/images --workdir=runs/deblur

The paper: ViT-B/16, 10,675 images, 12,000 epochs at batch 256 (492,000 steps); then, fine-tuned with the same
blur: Gaussian 1.1 accuracy 90.19, F1 88.48 (binary), AUROC 96.08; SRAD (40, 0.1) 90.07, 88.13, 95.87.
Expected cost: 59 GFLOP per image with three channels, 7.4e18 in all.

Ablations of the paper, each one override:
  blur        --config.task.degrade="speckle.srad(40, 0.1)"  or  blur.mean(5)  blur.median(5)
              blur.motion(5)  blur.defocus(5)  "blur.gaussian(sigma=0.5)"
  mask ratio  --config.task.mask_ratio=0.6       patch   --config.model.patch_size=8   or 28
  size        --config.model.variant=L           images  --config.data.fraction=0.5

`deblur_mae_thyroid.py:warm_start` starts from the weights of another network (--config.init_from): ImageNet's MAE, a DeblurringMIM
checkpoint, a timm ViT. Training for a fifteenth of the epochs is our choice, not the paper's.
`deblur_mae_thyroid.py:small` pre-trains a small network on a CPU: a ViT 192 wide and 6 deep at 96 pixels, 4,000 steps at batch 64, blurred with
sigma 2.2 after the resize.
Fine-tune it with configs/finetune.py:small.

Deviation: one gray channel (--config.model.in_chans=3 for the paper's three).
"""

from deblur_mae_jax.config import pick, pretraining


def get_config(arguments=""):
    """Gaussian blur with sigma 1.1 in native pixels; the loss is on all patches."""
    (start,) = pick(arguments, ("from_scratch", "warm_start", "small"))
    size = "small" if start == "small" else "paper"
    config = pretraining(size)
    config.task.degrade = (
        "blur.gaussian(sigma=1.1)" if size == "paper" else "blur.gaussian(sigma=2.2, kernel='opencv_float')"
    )
    config.optim.epochs = 12000.0 if start != "warm_start" else 800.0
    return config
