"""The ovary classifier without pre-training, for comparison: MMOTU, 1,469 images, 8 classes, the official split.

python main.py --config=configs/from_scratch_ovary.py --config.data.root=/my/ovary --workdir=runs/ovary_scratch
"""

from configs import from_scratch_folder


def get_config():
    """As `from_scratch_folder.py`."""
    config = from_scratch_folder.get_config()
    config.data.name = "manifest"
    config.data.split = "train"
    config.data.val_split = "val"
    config.data.test_split = "test"
    config.select.metric = "f1_macro"
    return config
