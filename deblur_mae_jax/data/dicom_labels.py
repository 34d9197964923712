"""Labels, splits and patients of DICOM pictures from a CSV, by UID, patient or path."""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

from deblur_mae_jax.data import naming, privacy, spelling
from deblur_mae_jax.data import table as tables
from deblur_mae_jax.data.listing import existing_root
from deblur_mae_jax.errors import UserError

# The columns by which a row finds its pictures, the most specific first, and the identifiers of a file.
KEYS = {"SOPInstanceUID": "sop", "SeriesInstanceUID": "series", "StudyInstanceUID": "study", "PatientID": "patient"}

ORDER = ("SOPInstanceUID", "path", "SeriesInstanceUID", "StudyInstanceUID", "PatientID")
SUFFIXES = (".dcm", ".dicom", ".ima")


class Labels:
    """The rows of `config.data.labels`.

    unused: number of pictures in each split that is not used.
    """

    def __init__(self, path: Path, table: tables.Table, split: str, root: Path):
        self.path, self.table = path, table
        # A path is relative to the folder of the files, as our own lists are, or to that of the CSV.
        self._finders = [tables.Finder(folder, SUFFIXES) for folder in (root, path.parent)]
        self.keys = [key for key in ORDER if key in table.columns]
        if "group" not in table.columns and "PatientID" in self.keys and len(self.keys) > 1:
            # A picture is found by its own name, and this is what the user says of its patient.
            table.columns["group"] = table.columns["PatientID"]
            for row in table.rows:
                row["group"] = row["PatientID"]
            tables.clean(table, "group")
        self.wanted = naming.wanted_splits(split) if "split" in table.columns else set()
        self.unused: dict[str, int] = {}
        # Of all splits, so that a patient has one name in all of them.
        stated = dict.fromkeys(row.get("group", "") for row in table.rows)
        self._numbers = {group: number for number, group in enumerate(filter(None, stated))}
        self._rows: dict[str, dict[str, dict[str, str]]] = {key: {} for key in self.keys}
        # A row names what its most specific identifier names: a row with a SOPInstanceUID is of that picture, not of
        # all pictures of its patient.
        self._key_of: dict[int, tuple[str, str]] = {}
        for row in table.rows:
            key = next((key for key in self.keys if row[key]), "")
            if key:
                self._key_of[id(row)] = key, self._normal(key, row[key])
                self._add(*self._key_of[id(row)], row)
        self._matched: set[tuple[str, str]] = set()
        self._missing = 0

    @classmethod
    def of(cls, path: str, columns: str, split: str, root: Path) -> Labels:
        """Read the CSV. Raises `UserError`.

        root: folder of the DICOM files.
        """
        file = existing_root(path, "config.data.labels")
        try:
            table = tables.read(file, "all", columns, (*KEYS, "path"))
        except UserError as error:
            raise UserError(str(error).replace("config.data.root", "config.data.labels")) from error
        if "split" in table.columns:
            naming.choose_splits([row["split"] for row in table.rows], split, f"'{file}'")
        return cls(file, table, split, root)

    def has(self, column: str) -> bool:
        """Whether the CSV has a column."""
        return column in self.table.columns

    def patient(self, row: dict[str, str]) -> str:
        """The name of the patient that a row states, a number and a hash; "" if it states none."""
        group = row.get("group", "")
        return f"{self._numbers[group]:06d}_{privacy.pseudonym('group', group)}" if group else ""

    def row(self, header: Any, path: str) -> dict[str, str] | None:
        """The row of a picture; {} without one, and `None` if it belongs to a split that is not used."""
        values = {key: [getattr(header, name)] for key, name in KEYS.items()}
        return self._row({**values, "path": [os.path.realpath(path)]})

    def row_of_volume(self, volume: Any, paths: list[str]) -> dict[str, str] | None:
        """The same of a volume, which may be named by any of its slices, or by the folder of all of them.

        volume: with `uid`, `study`, `patient` and `slices`, each with its `sop`.
        paths: the files of the slices.
        """
        files = {os.path.realpath(path) for path in paths}
        folders = {os.path.dirname(path) for path in files}
        return self._row({
            "SOPInstanceUID": [part.sop for part in volume.slices], "SeriesInstanceUID": [volume.uid],
            "StudyInstanceUID": [volume.study], "PatientID": [volume.patient],
            "path": sorted(files) + (sorted(folders) if len(folders) == 1 else []),
        })  # fmt: skip

    def _row(self, values: dict[str, list[str]]) -> dict[str, str] | None:
        """The row of a picture or volume.

        values: what each column may hold in it.
        """
        rows: list[dict[str, str]] = []
        for key in self.keys:
            wanted = [
                spelling.key(value.rpartition("|")[0]) if key == "PatientID" else value.strip() for value in values[key]
            ]
            rows = [self._rows[key][value] for value in dict.fromkeys(wanted) if value in self._rows[key]]
            if rows:
                break
        if not rows:
            self._missing += 1
            return None if self.wanted else {}
        found = rows[0]
        if any(row.get(c) != found.get(c) for row in rows for c in ("label", "split", "group", "mask")):
            raise UserError(
                f"config.data.labels: '{self.path}' has different contents for the slices of one volume; name "
                "volumes by their SeriesInstanceUID"
            )
        self._matched |= {self._key_of[id(row)] for row in rows}
        if self.wanted and found["split"] not in self.wanted:
            name = found["split"] or "no split"
            self.unused[name] = self.unused.get(name, 0) + 1
            return None
        return found

    def notes(self) -> list[str]:
        """What was assumed, and how many rows and pictures found no partner."""
        lines = [self._without_patients(line) for line in self.table.notes]
        if self._missing:
            lines.append(f"DICOM files without a row in config.data.labels: {self._missing}")
        lost = sum(key not in self._matched for key in self._key_of.values())
        if self.table.skipped:
            first = self.table.skipped[0]
            # Its cells may identify patients.
            where = re.search(r"line \d+", first.name)
            lines.append(
                f"rows of config.data.labels that are left out: {len(self.table.skipped)}, the first in "
                f"{where[0] if where else 'an unknown line'}: {first.reason}"
            )
        if lost:
            lines.append(f"rows of config.data.labels that name no DICOM file: {lost}")
        nameless = len(self.table.rows) - len(self._key_of)
        if nameless:
            lines.append(f"rows of config.data.labels without {' or '.join(self.keys)}: {nameless} (not used)")
        return lines

    def _without_patients(self, line: str) -> str:
        """A note of the table without the names of patients, which must not be written."""
        about_patients = f"column {self.table.columns.get('group', '')}: "
        if not line.startswith(about_patients):
            return line
        return f"{about_patients}some patients are spelled in several ways; each is taken as one patient"

    def _add(self, key: str, value: str, row: dict[str, str]) -> None:
        before = self._rows[key].setdefault(value, row)
        if before is not row and any(before.get(c) != row.get(c) for c in ("label", "split", "group", "mask")):
            twice = Counter(r[key] for r in self.table.rows if r[key])
            raise UserError(
                f"config.data.labels: '{self.path}' has {max(twice.values())} rows with the same {key} and different "
                "contents; use a column that tells the pictures apart, such as SOPInstanceUID"
            )

    def _normal(self, key: str, value: str) -> str:
        if key == "PatientID":  # as the patients of a CSV: capitals and `12.0` for `12` do not matter
            return spelling.key(spelling.composed(value.strip()))
        if key != "path":
            return value.strip()
        found = (finder.path(value) for finder in self._finders)
        return next((os.path.realpath(path) for path in found if os.path.lexists(path)), value)
