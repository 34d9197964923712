"""Read a CSV file that lists images, as people and table programs write it."""

from __future__ import annotations

import csv
import dataclasses
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from deblur_mae_jax.data import naming
from deblur_mae_jax.data.listing import printable
from deblur_mae_jax.data.source import Skipped
from deblur_mae_jax.errors import UserError, unknown

# The columns that are used, and other names for them, by which they are found if the first is missing.
COLUMNS = {
    "path": ("path", "file", "filename", "image", "file_name", "file_path", "filepath", "image_path", "image_file",
             "image_name", "img", "img_path", "volume", "dicom"),
    "label": ("label", "class", "diagnosis", "pathology", "category", "class_name", "target", "class_label"),
    "split": ("split", "subset", "partition"),
    "group": ("group", "patient", "patient_id", "patientid", "case", "case_id", "subject", "subject_id", "person",
              "pid", "study_id"),
    "mask": ("mask", "mask_path", "mask_file", "segmentation", "seg", "label_map", "annotation", "mask_filename"),
    "modality": ("modality",),
}  # fmt: skip
_SYNONYMS = {name for names in COLUMNS.values() for name in names}
MAX_CELL = 10_000_000
DELIMITERS = ",;\t|"


@dataclasses.dataclass
class Table:
    """The rows of a CSV.

    rows: the cells of each row by the name of the column that they are used as; "" where nothing is known.
    columns: which column of the file is used as each of `COLUMNS`.
    skipped: rows that cannot be used.
    notes: assumptions that were made, for the user.
    unused: number of rows in each split that is not used.
    """

    rows: list[dict[str, str]]
    columns: dict[str, str]
    skipped: list[Skipped]
    notes: list[str]
    unused: dict[str, int] = dataclasses.field(default_factory=dict)


def read(path: Path, split: str, chosen: str = "", keys: Sequence[str] = ("path",)) -> Table:
    """Read the rows of a CSV that belong to `split`.

    split: as `config.data.split`.
    chosen: `config.data.columns`, such as "group=patient_id,label=class".
    keys: the columns of `COLUMNS` that the CSV must have at least one of.
    Raises `UserError` if the file is not a CSV, or lacks the column with the paths.
    """
    table = Table([], {}, [], [])
    cells, header = _cells(path, table)
    table.columns = _columns(path, header, chosen, keys, table)
    order = [header.index(name) for name in table.columns.values()]
    for line, row in cells:
        values = {name: row[i].strip() for name, i in zip(table.columns, order, strict=True)}
        if not any(cell.strip() for cell in row):
            continue
        if all(naming.is_missing(values.get(key, "")) for key in keys):
            table.skipped.append(Skipped(f"{path.name}, line {line}", f"no {' or '.join(keys)}"))
            continue
        table.rows.append(values)
    _labels_that_are_masks(table)
    for name in ("label", "group", "split", "mask"):
        _clean(table, name)
    for name, what in (("split", "split"), ("group", "patient")):
        if name in table.columns and not any(row[name] for row in table.rows):
            del table.columns[name]
            table.notes.append(f"no row names a {what}: as without the column")
    _refuse_two_splits(table, path)
    _keep(table, path, split)
    return table


def _text(path: Path, table: Table) -> str:
    """The text of a file in UTF-8, UTF-16 or Windows-1252."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"config.data.root: cannot read '{path}' as CSV: {error.strerror or error}") from error
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16")):
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    head = content[:2000]
    for start, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        if head[start::2].count(0) > len(head) / 3:
            return content.decode(encoding, errors="replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        if content.count(0) > len(content) / 4:
            raise UserError(f"config.data.root: cannot read '{path}' as CSV: it is a binary file") from None
        table.notes.append(f"'{path.name}' is not UTF-8; it is read as Windows-1252 (Latin-1)")
        return content.decode("cp1252", errors="replace")


def _cells(path: Path, table: Table) -> tuple[list[tuple[int, list[str]]], list[str]]:
    """The rows with their line numbers, and the header. Rows that are damaged are listed as skipped."""
    text = _text(path, table)
    lines = re.split("\r\n|\n|\r", text)
    for number, line in enumerate(lines):
        if "\0" in line:
            if number == 0:
                raise UserError(f"config.data.root: cannot read '{path}' as CSV: its first line holds NUL bytes")
            table.skipped.append(Skipped(f"{path.name}, line {number + 1}", "the line is damaged: it holds NUL bytes"))
            lines[number] = ""
    first = _first_line(lines)
    if not first:
        raise UserError(f"config.data.root: '{path}' is empty")
    delimiter = max(DELIMITERS, key=lambda d: (first.count(d), d == ","))
    every = _rows(path, lines, delimiter, table)
    if not every or every[0][0] != lines.index(first) + 1:
        raise UserError(f"config.data.root: cannot read '{path}' as CSV: its first line cannot be read")
    (_, header), *rows = every
    width, kept, short = len(header), [], 0
    for line, row in rows:
        if any(cell.strip() for cell in row[width:]):
            shown = printable(delimiter.join(row))[:60]
            table.skipped.append(Skipped(f"{path.name}, row '{shown}'", "more cells than columns"))
            continue
        short += len(row) < width
        kept.append((line, [*row[:width], *[""] * (width - len(row))]))
    if short:
        table.notes.append(
            f"{short} rows of '{path.name}' have fewer cells than the header; the missing ones are empty"
        )
    return kept, [cell.strip() for cell in header]


def _rows(path: Path, lines: list[str], delimiter: str, table: Table) -> list[tuple[int, list[str]]]:
    """The header and the rows, each with the number of its first line. Empty lines are left out."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    unbalanced = sum(line.count('"') for line in lines) % 2 == 1
    if unbalanced:
        table.notes.append(f"'{path.name}' has an unbalanced quote; quotes are read as ordinary characters")
    found: list[tuple[int, list[str]]] = []
    reader = csv.reader(
        (f"{line}\n" for line in lines), delimiter=delimiter, skipinitialspace=True,
        quoting=csv.QUOTE_NONE if unbalanced else csv.QUOTE_MINIMAL,
    )  # fmt: skip
    apart = 0
    while True:
        start = reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            where = f"{path.name}, line {start + 1}"
            table.skipped.append(Skipped(where, f"cannot be read: {error} (a cell has at most {MAX_CELL} characters)"))
            continue
        span = lines[start : reader.line_num]
        width = len(found[0][1]) if found else 0
        # A quote that is a ditto mark, or never closed, joins whole rows until the next one that opens a cell.
        several = len(span) > 1 and width > 1 and all(line.count(delimiter) == width - 1 for line in span)
        if several and _opens_a_cell(span[-1], delimiter):
            apart += len(span)
            plain = csv.reader(span, delimiter=delimiter, skipinitialspace=True, quoting=csv.QUOTE_NONE)
            found += [(start + n, own) for n, own in enumerate(plain, start=1)]
        elif any(cell.strip() for cell in row):
            found.append((start + 1, row))
    if apart:
        table.notes.append(
            f"in {apart} rows of '{path.name}' a quote opens a cell and does not close it; there quotes are read as "
            "ordinary characters"
        )
    return found


def _opens_a_cell(line: str, delimiter: str) -> bool:
    """Whether the first quote of a line stands at the start of a cell."""
    before = line.partition('"')[0].rstrip(" ")
    return not before or before.endswith(delimiter)


def _first_line(lines: list[str]) -> str:
    """The header. Comments and Excel's `sep=;` before it are removed from `lines`."""
    for number, line in enumerate(lines):
        if line.startswith("#") or re.fullmatch(r"sep=.\s*", line.strip(), re.I):
            lines[number] = ""
        elif line.strip():
            return line
    return ""


def _normal(name: str) -> str:
    return "_".join(name.strip().lower().replace("-", " ").replace("_", " ").split())


def _columns(path: Path, header: list[str], chosen: str, keys: Sequence[str], table: Table) -> dict[str, str]:
    """Decide which column of the file is used as what. Raises `UserError`."""
    columns = _chosen(path, header, chosen)
    counts = Counter(_normal(name) for name in header)
    twice = next((name for name in header if counts[_normal(name)] > 1 and _normal(name) in _SYNONYMS), None)
    if twice is not None and twice not in columns.values():
        raise UserError(f"config.data.root: '{path}' has {counts[_normal(twice)]} columns called '{twice.lower()}'")
    by_name: dict[str, list[str]] = {}
    for name in header:
        by_name.setdefault(_normal(name), []).append(name)
    for uid in UIDS:
        same = [name for name in header if _normal(name).replace("_", "") == uid.lower()]
        if uid in keys and same and uid not in columns:
            columns[uid] = same[0]
    for use, synonyms in COLUMNS.items():
        if use in columns:
            continue
        found = [name for synonym in synonyms for name in by_name.get(synonym, ())]
        found = [name for name in dict.fromkeys(found) if name not in columns.values()]
        if not found:
            continue
        if _normal(found[0]) == use or (use == "path" and _normal(found[0]) in synonyms[:4]) or len(found) == 1:
            columns[use] = found[0]
            if _normal(found[0]) != use and not (use == "path" and found[0] in synonyms[:4]):
                table.notes.append(
                    f"column '{found[0]}' of '{path.name}' is used as {use} (config.data.columns='{use}=' turns it off)"
                )
            continue
        raise UserError(
            f"config.data.columns: '{path}' has no column {use}, and several that may be meant: "
            f"{', '.join(found)}. Did you mean {use}={found[0]}?"
        )
    if not any(columns.get(key) for key in keys):
        raise UserError(
            f"config.data.root: '{path}' has no column "
            f"{' or '.join(COLUMNS['path'][:4] if tuple(keys) == ('path',) else keys)}; its columns are "
            f"{', '.join(header[:20])}{' ...' if len(header) > 20 else ''}. config.data.columns='path=NAME' names it"
        )
    others = [name for name in header if name.strip() and name not in columns.values()]
    if others and "label" not in columns and tuple(keys) == ("path",):
        table.notes.append(
            f"columns that are not used, and so not classes: {', '.join(others[:10])}. "
            "config.data.columns='label=NAME' uses one"
        )
    return {use: name for use, name in columns.items() if name}


def _chosen(path: Path, header: list[str], chosen: str) -> dict[str, str]:
    """Parse `config.data.columns`. An empty name turns a column off."""
    columns = {}
    for entry in filter(str.strip, chosen.split(",")):
        use, equals, name = (part.strip() for part in entry.partition("="))
        if use not in COLUMNS and use not in UIDS:
            raise unknown("config.data.columns", use, [*COLUMNS, *UIDS])
        if not equals:
            raise UserError(f"config.data.columns: '{entry.strip()}' must be USE=COLUMN, such as group=patient_id")
        match = next((h for h in header if h == name or _normal(h) == _normal(name)), None)
        if name and match is None:
            raise unknown(f"config.data.columns: column of '{path}'", name, header)
        columns[use] = match or ""
    return columns


_FILE_NAME = re.compile(r"\.(png|jpe?g|tiff?|bmp|gif|webp|nii|nii\.gz|mha|mhd|nrrd|mgz)$", re.I)
# Columns that name the images of a DICOM set.
UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID")


def _labels_that_are_masks(table: Table) -> None:
    """Use a column `label` as `mask` if it holds the names of files."""
    if "label" not in table.columns or "mask" in table.columns or not table.rows:
        return
    files = sum(bool(_FILE_NAME.search(row["label"])) for row in table.rows)
    if files < 0.5 * len(table.rows):
        return
    table.notes.append(f"column '{table.columns['label']}' holds names of files, so it is used as mask, not as label")
    table.columns["mask"] = table.columns.pop("label")
    for row in table.rows:
        row["mask"] = row.pop("label")


def _refuse_two_splits(table: Table, path: Path) -> None:
    """Raise `UserError` if a file is in two splits, in whatever spelling of its path."""
    if "split" not in table.columns or "path" not in table.columns:
        return
    first: dict[str, str] = {}
    for row in table.rows:
        key = os.path.normpath(row["path"].replace("\\", "/"))
        if first.setdefault(key, row["split"]) != row["split"]:
            raise UserError(
                f"config.data.root: '{path}' lists '{row['path']}' twice, in the splits {first[key] or 'none'} and "
                f"{row['split'] or 'none'}"
            )


def _clean(table: Table, name: str) -> None:
    """Give cells that mean the same one spelling, and say where nothing is known."""
    if name not in table.columns:
        return
    raw = [row[name] for row in table.rows]
    if name == "split":
        values, lines = naming.canonical([naming.split_name(v) for v in raw])
    elif name == "mask":
        values, lines = (["" if naming.is_missing(v) else v for v in raw], [])
    else:
        values, lines = naming.canonical(raw)
    said = Counter(v for v, value in zip(raw, values, strict=True) if v and not value)
    if said:
        words = ", ".join(f"'{v}'" for v in sorted(said))
        table.notes.append(f"{sum(said.values())} rows have no {name}: {words} means that it is not known")
    table.notes += [f"column {table.columns[name]}: {line}" for line in lines]
    for row, value in zip(table.rows, values, strict=True):
        row[name] = value


def _keep(table: Table, path: Path, split: str) -> None:
    """Keep the rows of the wanted splits. Raises `UserError` if the CSV has none of them."""
    if "split" not in table.columns:
        return
    place = f"'{path}' (column '{table.columns['split']}')"
    chosen, table.unused = naming.choose_splits([row["split"] for row in table.rows], split, place)
    table.rows = [table.rows[i] for i in chosen]


class Finder:
    """Finds the files that the cells of a CSV name."""

    def __init__(self, folder: Path, extensions: Sequence[str]):
        self.folder, self.extensions = folder, tuple(extensions)
        self._names: dict[str, dict[str, list[str]]] = {}
        self.changed: Counter[str] = Counter()
        self.example: dict[str, str] = {}
        self.missing: list[str] = []

    def path(self, cell: str) -> str:
        """The path of the file that a cell names. A file that does not exist is returned as it is named.

        Backslashes, a missing extension and other capitals are understood, and counted in `notes`.
        """
        plain = os.path.join(self.folder, os.path.expanduser(cell))
        if os.path.lexists(plain):
            return os.path.normpath(plain)
        slashed = os.path.join(self.folder, os.path.expanduser(cell.replace("\\", "/")))
        if slashed != plain and os.path.lexists(slashed):
            return self._changed("backslashes in paths are read as slashes", cell, slashed)
        folder, base = os.path.split(slashed)
        folder = self._folder(folder)
        names = self._listed(folder)
        base = naming.composed(base).lower()
        for how, key in (("capitals in paths are read as in the files' own names", base),
                         ("paths without extension are completed", f"{base}\0")):  # fmt: skip
            found = names.get(key, [])
            if len(found) == 1:
                return self._changed(how, cell, os.path.join(folder, found[0]))
        self.missing.append(os.path.normpath(slashed))
        return self.missing[-1]

    def _folder(self, folder: str) -> str:
        """An existing folder with this name, whatever its capitals; or `folder` itself."""
        if os.path.isdir(folder) or folder in ("", os.sep):
            return folder
        outer, base = os.path.split(folder)
        outer = self._folder(outer)
        found = self._listed(outer).get(naming.composed(base).lower(), [])
        return os.path.join(outer, found[0]) if len(found) == 1 else folder

    def _changed(self, how: str, cell: str, path: str) -> str:
        self.changed[how] += 1
        self.example.setdefault(how, cell)
        return os.path.normpath(path)

    def _listed(self, folder: str) -> dict[str, list[str]]:
        """The files of a folder by their name in lower case, and by that name without extension, ended by NUL."""
        if folder not in self._names:
            out: dict[str, list[str]] = {}
            try:
                entries = os.listdir(folder)
            except (OSError, ValueError):
                entries = []
            for raw in entries:
                entry = naming.composed(raw)
                out.setdefault(entry.lower(), []).append(raw)
                suffix = next((e for e in self.extensions if entry.lower().endswith(e)), None)
                if suffix is not None:
                    out.setdefault(f"{entry.lower()[: -len(suffix)]}\0", []).append(raw)
            self._names[folder] = out
        return self._names[folder]

    @property
    def notes(self) -> list[str]:
        """What was understood differently from how it is written."""
        lines = [f"{n} rows: {how}, the first '{self.example[how]}'" for how, n in self.changed.items()]
        if self.missing:
            lines.append(
                f"{len(self.missing)} files do not exist, the first '{self.missing[0]}'; paths are relative to the "
                "folder of the CSV"
            )
        return lines


def name_of(cell: str) -> str:
    """The name of the image of a row: its path, with one spelling."""
    name = cell.replace("\\", "/") if "/" not in cell else cell
    return printable(str(PurePosixPath(name))) if not name.startswith("~") else printable(name)
