"""Images in Parquet files as Hugging Face writes them: a column `image` of bytes. Pack such a set to train on it."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from deblur_mae_jax.data import listing, naming, spelling
from deblur_mae_jax.data.decode import Decoder
from deblur_mae_jax.data.image_files import decoder_of, stamp_of
from deblur_mae_jax.data.source import BadImage, Skipped, Source
from deblur_mae_jax.data.table import COLUMNS, normal
from deblur_mae_jax.errors import UserError

AXES = 2  # of its images
READS: tuple[str, ...] = ()
IMAGES = ("image", "img", "picture")
LABELS = ("label", "labels", *COLUMNS["label"])
USES = {"label": LABELS, "group": COLUMNS["group"], "split": COLUMNS["split"]}


@functools.lru_cache(maxsize=2)
def _row_group(path: str, number: int, column: str) -> list[Any]:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read_row_group(number, columns=[column])[column].to_pylist()


@dataclasses.dataclass(frozen=True)
class Rows:
    """Read rows of Parquet files, fast in their order.

    places: (file, its column of images, row group, row in it) of each image.
    """

    places: list[tuple[str, str, int, int]]
    decoder: Decoder

    def content(self, index: int) -> bytes:
        """The bytes of one image. Raises `BadImage`."""
        path, column, group, row = self.places[index]
        try:
            cell = _row_group(path, group, column)[row]
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
        path, _, group, row = self.places[index]
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
    others, skipped, declared = dict[str, None](), list[Skipped](), set[str]()
    for file in files:
        where = file.stem if file == root else file.relative_to(root).with_suffix("").as_posix()
        try:
            rows, texts, left = _read(file)
        except Damaged as error:
            if len(skipped) == len(files) - 1:
                raise
            skipped.append(Skipped(f"{where}.parquet", str(error).partition(" is ")[2], damaged=True))
            continue
        others |= dict.fromkeys(left)
        declared |= set(texts.get("declared", ()))
        places += rows
        labels += texts.get("label") or [""] * len(rows)
        groups += texts.get("group") or [""] * len(rows)
        own = [naming.split_name(text) for text in texts.get("split") or ()]
        splits += own or [naming.split_of_shard(where)] * len(rows)
        names += [f"{where}/{i:07d}" for i in range(len(rows))]
    notes = [f"columns that are not used: {', '.join(list(others)[:10])}"] if others else []
    labels = spelling.known("label", labels, notes, declared)
    groups = spelling.known("group", groups, notes)
    chosen, unused = naming.choose_splits(splits, data.split, f"'{root}'")
    places = [places[i] for i in chosen]
    labels, groups, splits, names = ([values[i] for i in chosen] for values in (labels, groups, splits, names))
    reader = Rows(places, decoder_of(data, channels))
    return Source(
        names, reader.read, None, reader.stamp, labels=labels if any(labels) else None,
        groups=groups if any(groups) else None, examine=reader.examine, notes=notes, skipped=skipped,
        splits=splits if any(splits) else None, unused=unused,
    )  # fmt: skip


class Damaged(UserError):
    """A file that is no Parquet file."""


def _read(file: Path) -> tuple[list[tuple[str, str, int, int]], dict[str, list[str]], list[str]]:
    """The place of each row, labels, groups and splits as text, and the columns that are not used. Raises `UserError`.

    The names of declared classes are under "declared".

    Columns are found by the names that a CSV may have.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(file)
        names = table.schema_arrow.names
        by_name = {normal(name): name for name in reversed(names)}
        column = next((by_name[n] for n in IMAGES if n in by_name), "")
        if not column:
            raise UserError(f"config.data.root: '{file}' has no column image; its columns are {', '.join(names)}")
        places = [
            (str(file), column, group, row)
            for group in range(table.num_row_groups)
            for row in range(table.metadata.row_group(group).num_rows)
        ]
        texts, used = {}, {column}
        for use, choices in USES.items():
            own = next((by_name[n] for n in choices if n in by_name), None)
            # A struct, bytes or a list, such as the picture of a mask, is no text.
            if own is not None and own not in used and not _holds_data(table.schema_arrow.field(own).type):
                values = table.read(columns=[own])[own].to_pylist()
                classes = _class_names(table.schema_arrow, own)
                texts[use] = _texts(values, classes)
                if use == "label":
                    texts["declared"] = classes
                used.add(own)
    except (OSError, pa.ArrowException) as error:
        raise Damaged(f"config.data.root: '{file}' is not a Parquet file, or damaged: {str(error)[:160]}") from error
    return places, texts, [name for name in names if name not in used]


def _holds_data(kind: Any) -> bool:
    """Whether a column of this Arrow type holds pictures or lists instead of numbers or words."""
    import pyarrow as pa

    return pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


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
