"""The pancreas classifier without pre-training, for comparison: LEPset, 3,500 images, 2 classes, stratified 5-fold cross-validation.

python main.py --config=configs/from_scratch_pancreas.py --config.data.root=/my/pancreas --workdir=runs/pancreas_scratch
"""

from configs import from_scratch_folder


def get_config():
    """As `from_scratch_folder.py`."""
    config = from_scratch_folder.get_config()
    return config
