"""Fine-tuning on thyroid ultrasound, as D2MAE and DeblurrMAE did: GE4K, 4,494 images, 2 classes, 3:1:1.

    python main.py --config=configs/finetune_thyroid.py --config.init_from=runs/d2mae \\
      --config.data.root=/my/thyroid --workdir=runs/thyroid

The papers, after fine-tuning (F1 of DeblurrMAE is of the malignant class, of D2MAE macro; they do not compare):
  DeblurrMAE, Gaussian 1.1   accuracy 90.19, F1 88.48, AUROC 96.08      SRAD   90.07, 88.13, 95.87
  MAE                        89.45, 87.54, 95.54                        denoising MAE 80.38, 77.99, 84.38
  D2MAE                      90.38, 89.84, 96.21
"""

from configs import transfer


def get_config(recipe="paper"):
    """The MAE recipe at batch 32 (D2MAE; DeblurrMAE: 256)."""
    config = transfer.get_config(recipe)
    config.data.split = "train+pool"
    config.data.val_split = "auto"
    config.data.test_split = "auto"
    config.optim.batch_size = 32
    return config
