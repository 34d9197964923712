"""Read TensorFlow Datasets without TensorFlow, from data sets prepared as ArrayRecord files."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.data import buckets
from deblur_mae_jax.data.decode import Decoder
from deblur_mae_jax.data.image_files import decoder_of
from deblur_mae_jax.data.raster import reason
from deblur_mae_jax.data.source import BadImage, Source
from deblur_mae_jax.errors import UserError, one_line

AXES = 2  # of its images
READS = ("tfds_name",)  # fields of config.data that say what the images are


def source(data, channels: int) -> Source:
    """The images of `tfds.data_source(data.tfds_name)`.

    `data.split` uses the TFDS syntax (`train+test`, `train[:10%]`). `data.root` is the TFDS `data_dir` ("" for the
    default); a set at an address, such as gs://bucket/sets, is copied to this machine. The set is downloaded and
    prepared on first use if its builder can do so without TensorFlow. Every element needs an `image` feature. The
    features `label` and `group` (the patient) are used if the set has them.
    """
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise UserError(
            "config.data.name=tfds_source needs TensorFlow Datasets: pip install tensorflow-datasets"
        ) from error
    if not data.tfds_name:
        raise UserError("config.data.tfds_name is not set: name the data set, such as 'my_set:1.0.0'")
    split = data.split or "train"
    try:
        records: Any
        if buckets.is_address(data.root):
            records = tfds.builder_from_directory(_copied(tfds, data)).as_data_source(split=split)
        else:
            kinds = {"file_format": "array_record"}
            records = tfds.data_source(data.tfds_name, split=split, data_dir=data.root or None, builder_kwargs=kinds)
    except UserError:
        raise
    except Exception as error:  # TFDS raises many kinds; all of them are about what was asked for
        raise UserError(f"config.data.tfds_name: cannot load '{data.tfds_name}': {one_line(error)}") from error
    reader = Records(records, decoder_of(data, channels))
    features = records.dataset_info.features
    texts: dict[str, list[str]] = {name: [] for name in ("label", "group") if name in features.keys()}  # noqa: SIM118
    for i in range(len(records) if texts else 0):
        try:
            record = records[i]
        except Exception:  # damaged: `Records.read` says so when the image is checked
            record = None
        for name, values in texts.items():
            values.append("" if record is None else _text(features[name], record[name]))
    names = [f"{data.tfds_name}/{split}/{i:07d}" for i in range(len(records))]
    return Source(names, reader.read, examine=reader.examine, labels=texts.get("label"), groups=texts.get("group"))


def _copied(tfds: Any, data) -> Path:
    """The folder of a prepared set on this machine, copied from its address if it is not there yet."""
    field = "config.data.root"
    remote = buckets.at(data.root, field)
    with buckets.reaching(field, remote, "read"):
        found = buckets.at(tfds.builder(data.tfds_name, data_dir=str(remote)).data_path, field)
        if not found.exists():
            raise UserError(f"{field}: '{found}' does not exist: prepare the set, and copy it there")
        content = (found / "dataset_info.json").read_text()
        local = buckets.place(found, "sets") / hashlib.sha256(content.encode()).hexdigest()[:12]
        if not (local / "dataset_info.json").exists():  # copied last
            buckets.copy_tree(found, local, last=("dataset_info.json",))
    return local


def _text(feature: Any, value: Any) -> str:
    """A label or a group as text: the name of a class, or the value. An unknown class, -1, is ""."""
    if hasattr(feature, "int2str"):
        return feature.int2str(int(value)) if int(value) >= 0 else ""
    return value.decode() if isinstance(value, bytes) else str(value)


class Records:
    """Images of a TFDS data source as uint8 `(H, W, channels)`, prepared as those of files."""

    def __init__(self, records: Any, decoder: Decoder):
        self.records, self.decoder = records, decoder

    def read(self, index: int) -> np.ndarray:
        """Pixels of one record. Raises `BadImage`."""
        return self.examine(index)[0]

    def examine(self, index: int) -> tuple[np.ndarray, list[str]]:
        """`read`, and the assumptions that were made."""
        try:
            image = np.asarray(self.records[index]["image"])
        except Exception as error:  # records are damaged in as many ways as there are bytes
            raise BadImage(f"damaged: {reason(error)}") from error
        return self.decoder.prepare(image)
