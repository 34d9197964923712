"""Fine-tuning on ovary ultrasound, as D2MAE and DeblurrMAE did: MMOTU, 1,469 images, 8 classes, the official split.

    python main.py --config=configs/finetune_ovary.py --config.init_from=runs/d2mae \\
      --config.data.root=/my/ovary --workdir=runs/ovary

D2MAE: accuracy 80.47, macro F1 75.70, AUROC 93.17; MAE 71.58 F1, DeblurrMAE 72.33.
The official split as a CSV: --config.data.name=manifest --config.data.root=mmotu.csv (path,label,split,group).
"""

from configs import transfer


def get_config(recipe="paper"):
    """The MAE recipe at batch 32."""
    config = transfer.get_config(recipe)
    config.data.name = "manifest"
    config.select.metric = "f1_macro"
    config.optim.batch_size = 32
    return config
