"""Images in Parquet files as Hugging Face writes them: a column `image` of bytes. Pack such a set to train on it."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.data import listing, naming
from deblur_mae_jax.data.decode import Decoder
from deblur_mae_jax.data.image_files import decoder_of, stamp_of
from deblur_mae_jax.data.source import BadImage, Source
from deblur_mae_jax.errors import UserError

AXES = 2  # of its images
READS: tuple[str, ...] = ()
LABELS = ("label", "labels", "class", "diagnosis")
SPLITS = ("split",)
GROUPS = ("group", "patient", "patient_id", "subject_id", "case_id")


@functools.lru_cache(maxsize=2)
def _row_group(path: str, number: int, column: str) -> list[Any]:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read_row_group(number, columns=[column])[column].to_pylist()


@dataclasses.dataclass(frozen=True)
class Rows:
    """Read rows of Parquet files, fast in their order.

    places: (file, row group, row in it) of each image.
    """

    places: list[tuple[str, int, int]]
    column: str
    decoder: Decoder

    def content(self, index: int) -> bytes:
        """The bytes of one image. Raises `BadImage`."""
        path, group, row = self.places[index]
        try:
            cell = _row_group(path, group, self.column)[row]
        except OSError:
            raise
        except Exception as error:  # damaged pages
            raise BadImage(f"damaged: row group {group} cannot be read") from error
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(content, bytes):
            raise BadImage("its row holds no image (bytes)")
        return content

    def read(self, index: int) -> np.ndarray:
        """uint8 `(H, W, C)`."""
        return self.decoder(self.content(index))

    def examine(self, index: int) -> tuple[np.ndarray, list[str]]:
        """`read`, and the assumptions that were made."""
        return self.decoder.decode(self.content(index))

    def stamp(self, index: int) -> Any:
        """Size and time of the file, and the place in it."""
        path, group, row = self.places[index]
        return [stamp_of(path), group, row]


def source(data, channels: int) -> Source:
    """The images of the Parquet file, or of all Parquet files in the folder, `data.root`.

    The split is in a column `split`, or in the path of a file, as in `train-00000-of-00002.parquet` and
    `train/0000.parquet`. Classes have the names that Hugging Face
    stores beside their numbers.
    """
    root = listing.existing_root(data.root)
    files = (
        [root] if root.is_file() else [Path(f.path) for f in listing.walk(root).files if f.base.endswith(".parquet")]
    )
    if not files:
        raise UserError(f"config.data.root: no .parquet in '{root}'")
    places, labels, groups, splits, names = [], list[str](), list[str](), list[str](), list[str]()
    column = ""
    for file in files:
        column, rows, texts = _read(file)
        where = file.stem if file == root else file.relative_to(root).with_suffix("").as_posix()
        places += rows
        labels += texts.get("label") or [""] * len(rows)
        groups += texts.get("group") or [""] * len(rows)
        own = [naming.split_name(text) for text in texts.get("split") or ()]
        splits += own or [naming.split_of_shard(where)] * len(rows)
        names += [f"{where}/{i:07d}" for i in range(len(rows))]
    chosen, unused = naming.choose_splits(splits, data.split, f"'{root}'")
    places = [places[i] for i in chosen]
    labels, groups, splits, names = ([values[i] for i in chosen] for values in (labels, groups, splits, names))
    notes: list[str] = []
    labels, lines = naming.canonical(labels)
    notes += [f"label: {line}" for line in lines]
    groups, lines = naming.canonical(groups)
    notes += [f"group: {line}" for line in lines]
    reader = Rows(places, column, decoder_of(data, channels))
    return Source(
        names, reader.read, None, reader.stamp, labels=labels if any(labels) else None,
        groups=groups if any(groups) else None, examine=reader.examine, notes=notes,
        splits=splits if any(splits) else None, unused=unused,
    )  # fmt: skip


def _read(file: Path) -> tuple[str, list[tuple[str, int, int]], dict[str, list[str]]]:
    """The column of images, the place of each row, and labels and groups as text. Raises `UserError`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        column = next((n for n in ("image", "img", "picture") if n in names), "")
        if not column:
            raise UserError(f"config.data.root: '{file}' has no column image; its columns are {', '.join(names)}")
        places = [
            (str(file), group, row)
            for group in range(table.num_row_groups)
            for row in range(table.metadata.row_group(group).num_rows)
        ]
        texts = {}
        for use, choices in (("label", LABELS), ("group", GROUPS), ("split", SPLITS)):
            own = next((n for n in choices if n in names), None)
            if own is not None:
                values = table.read(columns=[own])[own].to_pylist()
                texts[use] = _texts(values, _class_names(table.schema_arrow, own))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"config.data.root: '{file}' is not a Parquet file, or damaged: {str(error)[:160]}") from error
    return column, places, texts


def _class_names(schema: Any, column: str) -> list[str]:
    """The names that Hugging Face keeps for the numbers of a column of classes; [] without them."""
    try:
        info = json.loads(schema.metadata[b"huggingface"])["info"]["features"][column]
        return list(info.get("names") or [])
    except (KeyError, TypeError, ValueError):
        return []


def _texts(values: list[Any], names: list[str]) -> list[str]:
    out = []
    for value in values:
        known = isinstance(value, int) and 0 <= value < len(names)
        unknown = value is None or (value == -1 and bool(names))  # Hugging Face's number of an unknown class
        out.append("" if unknown else names[value] if known else str(value))
    return out
