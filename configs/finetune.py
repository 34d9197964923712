r"""Fine-tune a classifier on your own images, or on the three organs of D2MAE and DeblurrMAE.

    python main.py --config=configs/finetune.py --config.init_from=runs/d2mae \
      --config.data.root=/my/labelled --workdir=runs/classifier

The root is a folder with one sub-folder per class, or a CSV (--config.data.name=manifest --config.data.root=list.csv).
Splits called train, val and test (sub-folders, or the column `split` of a CSV) are used; a missing split is drawn from the training
images, 3:1:1, stratified by class, never dividing a patient (the column `group` of a CSV).

With `:upstream`, settings in which DeblurringMIM's code differs from the papers. Its rate of 1e-3 is the default of the
code; the command in its README has 1e-4 (--config.optim.base_lr=1e-4).

    finetune.py:thyroid    GE4K, 4,494 images, 2 classes, 3:1:1
      DeblurrMAE, Gaussian 1.1   accuracy 90.19, F1 88.48, AUROC 96.08      SRAD   90.07, 88.13, 95.87
      MAE                        89.45, 87.54, 95.54                        denoising MAE 80.38, 77.99, 84.38
      D2MAE                      90.38, 89.84, 96.21    (its F1 is macro, that of DeblurrMAE is of the malignant class)
    finetune.py:ovary      MMOTU, 1,469 images, 8 classes, the official split as a CSV (path,label,split,group)
      D2MAE accuracy 80.47, macro F1 75.70, AUROC 93.17; macro F1 of MAE 71.58, of DeblurrMAE 72.33
    finetune.py:pancreas   LEPset, 3,500 images, 2 classes, five stratified folds (--config.data.fold=0 to 4)
      D2MAE accuracy 87.43, macro F1 87.41, AUROC 94.13; macro F1 of MAE 84.83, of DeblurrMAE 84.61

`finetune.py:upstream`, or `finetune.py:thyroid,upstream`, follows the recipe of the published code.
`finetune.py:small` is for small networks and sets of some hundred to a few thousand images: 15 epochs, base learning rate
4e-3 in all layers, mild crops, no mixing; the weights are chosen by AUROC.
"""

from deblur_mae_jax.config import finetuning, on_organ, pick


def get_config(arguments=""):
    """The MAE recipe at batch 32, as in D2MAE (DeblurrMAE: 256)."""
    organ, preset = pick(arguments, ("folder", "thyroid", "ovary", "pancreas"), ("paper", "upstream", "small", "repo"))
    config = on_organ(finetuning(preset), organ)
    config.optim.batch_size = 32
    return config
