"""Read a CSV file that lists images, with the columns `path,label,split,group,mask`.

Other columns are ignored.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from deblur_mae_jax.data import layout, pairing
from deblur_mae_jax.data import table as tables
from deblur_mae_jax.data.decode import EXTENSIONS
from deblur_mae_jax.data.image_files import Files, Masks, decoder_of, mask_file_of
from deblur_mae_jax.data.layout import groups_by_pattern
from deblur_mae_jax.data.listing import File, existing_root
from deblur_mae_jax.data.naming import views
from deblur_mae_jax.data.source import Skipped, Source
from deblur_mae_jax.errors import UserError

AXES = 2  # of its images
READS = ("columns", "group_pattern")  # fields of config.data that say what the images are


def source(data, channels: int) -> Source:
    """The rows of the CSV `data.root` whose split is named in `data.split`.

    Paths are relative to the CSV's folder. Their column is called path, file, filename or image. Other names of the
    columns are understood (`data/table.py`), or given by `data.columns`. `data.split` is one name, or several joined by
    "+", such as "train+pool". With "" or "all", or if the CSV has no split column, every row is used.
    """
    root = existing_root(data.root)
    if root.is_dir():
        root = root / "manifest.csv"
        if not root.exists():
            raise UserError(f"config.data.root: '{data.root}' holds no manifest.csv; name the CSV")
    table = tables.read(root, data.split, data.columns)
    finder = tables.Finder(root.parent, sorted(EXTENSIONS))
    rows, masks_listed = without_masks(table.rows, lambda base: Path(base).stem)
    paths = [finder.path(row["path"]) for row in rows]
    refuse_twice(root, paths, [row["path"] for row in rows])
    names = [tables.name_of(row["path"]) for row in rows]
    files = Files(paths, decoder_of(data, channels))
    mask_files = [_masks_of(row, finder) for row in rows]
    masks = Masks(mask_files, files, mask_file_of(data))
    notes = [*table.notes, *finder.notes, *joined_words(rows)]
    groups = groups_of(names, rows, table.columns, data.group_pattern, notes)
    groups = layout.one_patient_per_mask(groups or [""] * len(rows), mask_files, names, notes)
    return Source(
        names,
        files.read,
        files.header,
        files.stamp,
        labels=[row["label"] for row in rows] if "label" in table.columns else None,
        groups=groups if any(groups) else None,
        **masks.fields(),
        skipped=table.skipped + masks_listed,
        examine=files.examine,
        whole=files.whole,
        notes=notes,
        splits=[row["split"] for row in rows] if "split" in table.columns else None,
        unused=table.unused,
    )


def without_masks(
    rows: list[dict[str, str]], stem_of: Callable[[str], str], *, volumes: bool = False
) -> tuple[list[dict[str, str]], list[Skipped]]:
    """The rows of a CSV in order, without those that are masks of other rows, and a reason for each of these.

    A row is a mask if another one names it in its column `mask`, or if it is named like the mask of another one.

    stem_of: name of a file without its suffix.
    """
    rows = sorted(rows, key=lambda row: row["path"])
    named = {tables.name_of(mask): row["path"] for row in rows for mask in cells_of_masks(row) if mask != row["path"]}
    files = [File(row["path"], tables.name_of(row["path"])) for row in rows]
    called = layout.masks_among(files, stem_of, volumes=volumes)
    kept, skipped = [], []
    for row in rows:
        name = tables.name_of(row["path"])
        image = named.get(name) or ("" if cells_of_masks(row) else called.get(row["path"], ""))
        if image:
            how = "it is the mask of" if name in named else "it is named like the mask of"
            skipped.append(Skipped(name, f"{how} '{image}', another row: masks belong into the column `mask`"))
        else:
            kept.append(row)
    return kept, skipped


def cells_of_masks(row: dict[str, str]) -> list[str]:
    """The masks that a row names, separated by semicolons."""
    return [part.strip() for part in row.get("mask", "").split(";") if part.strip()]


def joined_words(rows: list[dict[str, str]]) -> list[str]:
    """A note on rows whose masks have different words in their names; [] without such."""
    words = {row["path"]: pairing.different_words(Path(cell).name for cell in cells_of_masks(row)) for row in rows}
    found = [path for path, different in words.items() if different]
    if not found:
        return []
    return [
        f"{len(found)} rows name masks that are joined to one class, the first '{found[0]}' those called "
        f"{' and '.join(words[found[0]])}. If they mean different classes, give one mask with a number per class"
    ]


def _masks_of(row: dict[str, str], finder: tables.Finder) -> tuple[str, ...]:
    return tuple(finder.path(mask) for mask in cells_of_masks(row))


def refuse_twice(root: Path, paths: list[str], cells: list[str]) -> None:
    """Raise `UserError` if two rows name the same file, in whatever spelling."""
    first: dict[str, str] = {}
    twice: list[tuple[str, str]] = []
    for named, cell in zip(paths, cells, strict=True):
        path = os.path.realpath(named)
        if path in first:
            twice.append((cell, first[path]))
        first.setdefault(path, cell)
    if twice:
        cell, other = twice[0]
        also = f" (also as '{other}')" if other != cell else ""
        count = f"; {len(twice)} rows are such repetitions" if len(twice) > 1 else ""
        raise UserError(
            f"config.data.root: '{root}' lists '{cell}' twice{also}{count}. Keep one row for each file; several masks "
            "of one image go into one cell, separated by semicolons"
        )


def groups_of(
    names: list[str], rows: list[dict[str, str]], columns: dict[str, str], pattern: str, notes: list[str]
) -> list[str] | None:
    """The patient of every row: the column `group`, else `config.data.group_pattern`. Adds to `notes`."""
    if "group" in columns:
        groups = [row["group"] for row in rows]
        if pattern:
            notes.append(f"config.data.group_pattern is not used: the patients are in column '{columns['group']}'")
        return groups
    if pattern:
        return groups_by_pattern(names, pattern, notes)
    notes += filter(None, [views([Path(name).stem for name in names])])
    return None
