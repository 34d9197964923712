"""Fine-tuning on pancreas ultrasound, as D2MAE and DeblurrMAE did: LEPset, 3,500 images, 2 classes, stratified 5-fold cross-validation.

    python main.py --config=configs/finetune_pancreas.py --config.init_from=runs/d2mae \\
      --config.data.root=/my/pancreas --workdir=runs/pancreas

D2MAE: accuracy 87.43, macro F1 87.41, AUROC 94.13; MAE 84.83 F1, DeblurrMAE 84.61.
Folds: --config.data.fold=0 to 4, each in a workdir of its own (or scripts/study.py).
"""

from configs import transfer


def get_config(recipe="paper"):
    """The MAE recipe at batch 32."""
    config = transfer.get_config(recipe)
    config.data.split = "train+pool"
    config.data.val_split = "auto"
    config.data.test_split = "auto"
    config.optim.batch_size = 32
    return config
