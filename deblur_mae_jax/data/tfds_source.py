"""Read TensorFlow Datasets without TensorFlow, from data sets prepared as ArrayRecord files."""

from __future__ import annotations

from typing import Any

import numpy as np

from deblur_mae_jax.data.source import BadImage, Source
from deblur_mae_jax.errors import UserError

AXES = 2  # of its images


def source(data, channels: int) -> Source:
    """The images of `tfds.data_source(data.tfds_name)`.

    `data.split` uses the TFDS syntax (`train+test`, `train[:10%]`). `data.root` is the TFDS `data_dir`
    ("" for the default). The set is downloaded and prepared on first use if its builder can do so
    without TensorFlow. Every element needs an `image` feature. The features `label` and `group` (the
    patient) are used if the set has them.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            "config.data.name=tfds_source needs TensorFlow Datasets: pip install tensorflow-datasets"
        ) from error
    if not data.tfds_name:
        raise UserError("config.data.tfds_name is not set: name the data set, such as 'my_set:1.0.0'")
    try:
        records: Any = tfds.data_source(
            data.tfds_name,
            split=data.split or "train",
            data_dir=data.root or None,
            builder_kwargs={"file_format": "array_record"},
        )
    except Exception as error:  # TFDS raises many kinds; all of them are about what was asked for
        line = str(error).strip().splitlines()[0]
        raise UserError(f"config.data.tfds_name: cannot load '{data.tfds_name}': {line}") from error
    reader = Records(records, channels)
    features = records.dataset_info.features
    texts: dict[str, list[str]] = {name: [] for name in ("label", "group") if name in features.keys()}  # noqa: SIM118
    for i in range(len(records) if texts else 0):
        record = records[i]
        for name, values in texts.items():
            values.append(_text(features[name], record[name]))
    names = [f"{data.tfds_name}/{data.split or 'train'}/{i:07d}" for i in range(len(records))]
    return Source(names, reader.read, labels=texts.get("label"), groups=texts.get("group"))


def _text(feature: Any, value: Any) -> str:
    """A label or a group as text: the name of a class, or the value."""
    if hasattr(feature, "int2str"):
        return feature.int2str(int(value))
    return value.decode() if isinstance(value, bytes) else str(value)


class Records:
    """Images of a TFDS data source as uint8 `(H, W, channels)`."""

    def __init__(self, records: Any, channels: int):
        self.records, self.channels = records, channels

    def read(self, index: int) -> np.ndarray:
        """Pixels of one record."""
        image = np.asarray(self.records[index]["image"])
        if image.ndim == 2:
            image = image[:, :, None]
        if image.dtype == np.uint16:
            image = np.rint(image / 257.0).astype(np.uint8)
        if image.dtype != np.uint8 or image.ndim != 3 or 0 in image.shape:
            raise BadImage(f"feature 'image' has shape {image.shape} and type {image.dtype}")
        image = image[:, :, :3] if image.shape[2] >= 3 else image[:, :, :1]
        if self.channels == 1 and image.shape[2] == 3:
            image = np.rint(image @ [0.299, 0.587, 0.114])[:, :, None].astype(np.uint8)
        return np.repeat(image, 3, axis=2) if self.channels > image.shape[2] else image
