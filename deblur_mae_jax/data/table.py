"""What the columns and rows of a CSV mean that lists images, as people and table programs write it."""

from __future__ import annotations

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path, PurePosixPath

from deblur_mae_jax.data import cells, naming, spelling
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
              "pid", "study_id", "mrn", "medical_record_number", "patient_number"),
    "mask": ("mask", "mask_path", "mask_file", "segmentation", "seg", "label_map", "annotation", "mask_filename"),
    "modality": ("modality",),
}  # fmt: skip
SYNONYMS = {name for names in COLUMNS.values() for name in names}


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
    found = cells.read(path, SYNONYMS)
    table, header = Table([], {}, found.skipped, found.notes), found.header
    table.columns = _columns(path, header, chosen, keys, table)
    if "split" not in table.columns and "split" not in _chosen(path, header, chosen):
        _find_splits(path, found, table)
    if "label" in table.columns or "label" not in _chosen(path, header, chosen):
        _say_unused(header, keys, table)
    order = [header.index(name) for name in table.columns.values()]
    for line, row in found.rows:
        values = {name: _cell(row[i]) for name, i in zip(table.columns, order, strict=True)}
        if not any(cell.strip() for cell in row):
            continue
        if all(spelling.is_missing(values.get(key, "")) for key in keys):
            table.skipped.append(Skipped(f"{printable(path.name)}, line {line}", f"no {' or '.join(keys)}"))
            continue
        table.rows.append(values)
    _words_that_are_no_masks(table, _chosen(path, header, chosen))
    _labels_that_are_masks(table)
    for name in ("label", "group", "split", "mask"):
        clean(table, name)
    for name, what in (("split", "split"), ("group", "patient")):
        if name in table.columns and not any(row[name] for row in table.rows):
            del table.columns[name]
            table.notes.append(f"no row names a {what}: as without the column")
    _refuse_two_splits(table, path)
    _keep(table, path, split)
    return table


def _cell(text: str) -> str:
    """A cell without blanks around it, and without the ways in which tables keep zeros: `="007"` and `'007`."""
    text = text.strip()
    kept = re.fullmatch(r'="(.*)"|\'(\d+)', text)
    return text if kept is None else (kept[1] if kept[1] is not None else kept[2])


def normal(name: str) -> str:
    """The name of a column in one spelling: `Patient ID` is `patient_id`."""
    return "_".join(name.strip().lower().replace("-", " ").replace("_", " ").split())


def _columns(path: Path, header: list[str], chosen: str, keys: Sequence[str], table: Table) -> dict[str, str]:
    """Decide which column of the file is used as what. Raises `UserError`."""
    columns = _chosen(path, header, chosen)
    counts = Counter(normal(name) for name in header)
    twice = next((name for name in header if counts[normal(name)] > 1 and normal(name) in SYNONYMS), None)
    if twice is not None and twice not in columns.values():
        raise UserError(f"config.data.root: '{path}' has {counts[normal(twice)]} columns called '{twice.lower()}'")
    by_name: dict[str, list[str]] = {}
    for name in header:
        by_name.setdefault(normal(name), []).append(name)
    for uid in UIDS:
        same = [name for name in header if normal(name).replace("_", "") == uid.lower()]
        # Beside what names a picture, a column such as `patient_id` says its patient.
        exact = uid != "PatientID" or "PatientID" in same or not _names_pictures(columns, by_name)
        if uid in keys and same and uid not in columns and exact:
            columns[uid] = same[0]
    for use, synonyms in COLUMNS.items():
        if use in columns:
            continue
        found = [name for synonym in synonyms for name in by_name.get(synonym, ())]
        found = [name for name in dict.fromkeys(found) if name not in columns.values()]
        if not found:
            continue
        if normal(found[0]) == use or (use == "path" and normal(found[0]) in synonyms[:4]) or len(found) == 1:
            columns[use] = found[0]
            if normal(found[0]) != use and not (use == "path" and found[0] in synonyms[:4]):
                table.notes.append(
                    f"column '{found[0]}' of '{printable(path.name)}' is used as {use} "
                    f"(config.data.columns='{use}=' turns it off)"
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
    return {use: name for use, name in columns.items() if name}


def _names_pictures(columns: dict[str, str], by_name: dict[str, list[str]]) -> bool:
    """Whether a column names pictures, series or studies, so that none is needed that names all those of a patient."""
    uids = {normal(name).replace("_", "") for name in by_name} & {uid.lower() for uid in UIDS if uid != "PatientID"}
    named = any(columns.get(use) for use in ("path", *UIDS)) or any(name in by_name for name in COLUMNS["path"])
    return named or bool(uids)


def _find_splits(path: Path, found: cells.Cells, table: Table) -> None:
    """Use a column of another name as the splits, if its cells are the names of at least two splits."""
    for i, name in enumerate(found.header):
        if name in table.columns.values():
            continue
        words = {naming.split_name(row[i].strip()) for _, row in found.rows if not spelling.is_missing(row[i])}
        if len(words) > 1 and words <= set(naming.SPLIT_NAMES.values()):
            table.columns["split"] = name
            table.notes.append(
                f"column '{name}' of '{printable(path.name)}' holds the names of splits and is used as split "
                "(config.data.columns='split=' turns it off)"
            )
            return


def _say_unused(header: list[str], keys: Sequence[str], table: Table) -> None:
    """Note the columns that are not used."""
    others = [name for name in header if name.strip() and name not in table.columns.values()]
    if not others or tuple(keys) != ("path",):
        return
    no_class = "label" not in table.columns
    table.notes.append(
        f"columns that are not used{', and so not classes' if no_class else ''}: {', '.join(others[:10])}"
        + (". config.data.columns='label=NAME' uses one" if no_class else "")
    )


def _chosen(path: Path, header: list[str], chosen: str) -> dict[str, str]:
    """Parse `config.data.columns`. An empty name turns a column off."""
    columns = {}
    for entry in filter(str.strip, chosen.split(",")):
        use, equals, name = (part.strip() for part in entry.partition("="))
        if use not in COLUMNS and use not in UIDS:
            raise unknown("config.data.columns", use, [*COLUMNS, *UIDS])
        if not equals:
            raise UserError(f"config.data.columns: '{entry.strip()}' must be USE=COLUMN, such as group=patient_id")
        match = next((h for h in header if h == name or normal(h) == normal(name)), None)
        if name and match is None:
            raise unknown(f"config.data.columns: column of '{path}'", name, header)
        columns[use] = match or ""
    return columns


_FILE_NAME = re.compile(r"\.(png|jpe?g|tiff?|bmp|gif|webp|nii|nii\.gz|mha|mhd|nrrd|mgz)$", re.I)
# Columns that name the images of a DICOM set.
UIDS = ("SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "PatientID")


def _names_a_file(cell: str, image: str) -> bool:
    """Whether a cell can be the file of a mask: it has folders, a suffix, or the name of its image."""
    stem = image.replace("\\", "/").rpartition("/")[2].partition(".")[0]
    return "/" in cell or "\\" in cell or bool(_FILE_NAME.search(cell)) or bool(stem and stem in cell)


def _words_that_are_no_masks(table: Table, chosen: Container[str]) -> None:
    """Do not use a column as `mask` for its name alone, such as `annotation`, if its cells are no names of files.

    chosen: the columns that the user names.
    """
    name = table.columns.get("mask", "")
    if not name or "mask" in chosen or normal(name) in COLUMNS["mask"][:3]:
        return
    told = [row for row in table.rows if not spelling.is_missing(row["mask"])]
    like = sum(_names_a_file(row["mask"], row.get("path", "")) for row in told)
    if 2 * like >= len(told):
        return
    table.notes = [line for line in table.notes if not line.startswith(f"column '{name}' of")]
    table.notes.append(f"column '{name}' is not used as mask: its cells, such as '{told[0]['mask']}', name no files")
    del table.columns["mask"]
    for row in table.rows:
        del row["mask"]


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


def clean(table: Table, name: str) -> None:
    """Give cells that mean the same one spelling, and say where nothing is known."""
    if name not in table.columns:
        return
    raw = [row[name] for row in table.rows]
    if name == "split":
        values, lines = spelling.canonical([naming.split_name(v) for v in raw])
    elif name == "mask":
        values, lines = (["" if spelling.is_missing(v) else v for v in raw], [])
    else:
        values, lines = spelling.canonical(raw)
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


COMPLETED = "paths without extension are completed"


class Finder:
    """Finds the files that the cells of a CSV name."""

    def __init__(self, folder: Path, extensions: Sequence[str]):
        self.folder, self.extensions = folder, tuple(extensions)
        self._names: dict[str, dict[str, list[str]]] = {}
        self.changed: Counter[str] = Counter()
        self.example: dict[str, str] = {}
        self.missing: list[str] = []
        self.several: list[tuple[str, list[str]]] = []

    def path(self, cell: str) -> str:
        """The path of the file that a cell names. A file that does not exist is returned as it is named.

        Backslashes, a missing extension and other capitals are understood, and counted in `notes`.
        """
        plain = os.path.join(self.folder, os.path.expanduser(cell))
        completed = self._completed(plain) if os.path.isdir(plain) else ""
        if completed:  # `p1` beside `p1.png` and a folder of this name
            return self._changed(COMPLETED, cell, completed)
        if os.path.lexists(plain):
            return os.path.normpath(plain)
        slashed = os.path.join(self.folder, os.path.expanduser(cell.replace("\\", "/")))
        if slashed != plain and os.path.lexists(slashed):
            return self._changed("backslashes in paths are read as slashes", cell, slashed)
        folder, base = os.path.split(slashed)
        folder = self._folder(folder)
        names = self._listed(folder)
        base = spelling.composed(base).lower()
        for how, key in (("capitals in paths are read as in the files' own names", base),
                         (COMPLETED, f"{base}\0")):  # fmt: skip
            found = names.get(key, [])
            if len(found) == 1:
                return self._changed(how, cell, os.path.join(folder, found[0]))
            if found:
                self.several.append((cell, sorted(printable(name) for name in found)))
                break
        self.missing.append(os.path.normpath(slashed))
        return self.missing[-1]

    def _completed(self, plain: str) -> str:
        """The only file of this name with an extension, or ""."""
        folder, base = os.path.split(os.path.normpath(plain))
        found = self._listed(folder).get(f"{spelling.composed(base).lower()}\0", [])
        return os.path.join(folder, found[0]) if len(found) == 1 else ""

    def _folder(self, folder: str) -> str:
        """An existing folder with this name, whatever its capitals; or `folder` itself."""
        if os.path.isdir(folder) or folder in ("", os.sep):
            return folder
        outer, base = os.path.split(folder)
        outer = self._folder(outer)
        found = self._listed(outer).get(spelling.composed(base).lower(), [])
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
                entry = spelling.composed(raw)
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
        if self.several:
            cell, files = self.several[0]
            lines.append(
                f"{len(self.several)} rows may mean several files, and are left out: the first, '{printable(cell)}', "
                f"{' or '.join(files[:3])}"
            )
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
