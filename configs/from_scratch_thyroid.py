"""The thyroid classifier without pre-training, for comparison: GE4K, 4,494 images, 2 classes, 3:1:1.

python main.py --config=configs/from_scratch_thyroid.py --config.data.root=/my/thyroid --workdir=runs/thyroid_scratch
"""

from configs import from_scratch_folder


def get_config():
    """As `from_scratch_folder.py`."""
    config = from_scratch_folder.get_config()
    return config
