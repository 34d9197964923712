"""Read a CSV file that lists images, with the columns `path,label,split,group,mask`.

Other columns are ignored.
"""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

from deblur_mae_jax.data.image_folder import Files, Masks, decoder_of, existing_root
from deblur_mae_jax.data.source import Source
from deblur_mae_jax.errors import UserError

AXES = 2  # of its images

PATH_COLUMNS = ("path", "file", "filename", "image")


def read_rows(path: Path, split: str) -> tuple[list[dict[str, str]], str, list[str]]:
    """Read the rows of a CSV that belong to `split`.

    Returns the rows, the name of the column with their paths, and the names of all columns.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            columns = list(reader.fieldnames or [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"config.data.root: cannot read '{path}' as CSV: {error}") from error
    column = next((c for c in PATH_COLUMNS if c in columns), None)
    if column is None:
        raise UserError(
            f"config.data.root: '{path}' has no column {' or '.join(PATH_COLUMNS)}; "
            f"its columns are {', '.join(columns)}"
        )
    wanted = {name for name in split.split("+") if name and name != "all"}
    if wanted and "split" in columns:
        present = {row["split"] for row in rows}
        # The default names several splits, and not all of them need to exist. It is an error only if none exists.
        if not wanted & present:
            raise UserError(
                f"config.data.split: '{split}' is not a split of '{path}'. Choices: {', '.join(sorted(present))}, all."
            )
        rows = [row for row in rows if row["split"] in wanted]
    return rows, column, columns


def source(data, channels: int) -> Source:
    """The rows of the CSV `data.root` whose split is named in `data.split`.

    Paths are relative to the CSV's folder. Their column is called path, file, filename or image.
    `data.split` is one name, or several joined by "+", such as "train+pool". With "" or "all", or if
    the CSV has no split column, every row is used.
    """
    root = existing_root(data.root)
    if root.is_dir():
        root = root / "manifest.csv"
        if not root.exists():
            raise UserError(f"config.data.root: '{data.root}' holds no manifest.csv; name the CSV")
    rows, column, columns = read_rows(root, data.split)
    rows = [row for row in rows if row[column]]
    rows.sort(key=lambda row: row[column])
    names = [row[column] for row in rows]
    twice = next((a for a, b in itertools.pairwise(names) if a == b), None)
    if twice is not None:
        raise UserError(f"config.data.root: '{root}' lists '{twice}' twice")
    files = Files([str(root.parent / name) for name in names], decoder_of(data, channels))
    named = [row.get("mask") or "" for row in rows]
    masks = Masks([str(root.parent / name) if name else "" for name in named], files)
    return Source(
        names,
        files.read,
        files.header,
        files.stamp,
        labels=[row["label"] or "" for row in rows] if "label" in columns else None,
        groups=[row["group"] or "" for row in rows] if "group" in columns else None,
        **masks.fields(),
    )
