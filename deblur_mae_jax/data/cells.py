"""Read the cells of a CSV file, in the encodings and with the quotes that people and table programs leave behind."""

from __future__ import annotations

import csv
import dataclasses
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from deblur_mae_jax.data.listing import printable
from deblur_mae_jax.data.source import Skipped
from deblur_mae_jax.errors import UserError

MAX_CELL = 10_000_000
DELIMITERS = ",;\t|"
# The first bytes of Excel's workbooks, new and old.
WORKBOOKS = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")


@dataclasses.dataclass
class Cells:
    """The cells of a CSV.

    header: the names of the columns.
    rows: the number of the first line of each row, and its cells, as many as there are columns.
    skipped: rows that are damaged.
    notes: assumptions that were made, for the user.
    """

    header: list[str]
    rows: list[tuple[int, list[str]]]
    skipped: list[Skipped]
    notes: list[str]


def read(path: Path, known: Container[str] = ()) -> Cells:
    """Read a CSV file. Raises `UserError` if it is not one."""
    out = Cells([], [], [], [])
    name = printable(path.name)
    lines = re.split("\r\n|\n|\r", _text(path, out.notes))
    for number, line in enumerate(lines):
        if "\0" in line:
            if number == 0:
                raise UserError(f"config.data.root: cannot read '{path}' as CSV: its first line holds NUL bytes")
            reason = "damaged: the line holds NUL bytes"
            out.skipped.append(Skipped(f"{name}, line {number + 1}", reason, damaged=True))
            lines[number] = ""
    first = _first_line(lines, known)
    if not first:
        raise UserError(f"config.data.root: '{path}' is empty")
    delimiter = max(DELIMITERS, key=lambda d: (first.count(d), d == ","))
    every = _rows(name, lines, delimiter, out)
    if not every or every[0][0] != lines.index(first) + 1:
        raise UserError(f"config.data.root: cannot read '{path}' as CSV: its first line cannot be read")
    (_, header), *rows = every
    width, short = len(header), 0
    for line, row in rows:
        if any(cell.strip() for cell in row[width:]):
            shown = printable(delimiter.join(row))[:60]
            out.skipped.append(Skipped(f"{name}, line {line}, '{shown}'", "more cells than columns", damaged=True))
            continue
        short += len(row) < width
        out.rows.append((line, [*row[:width], *[""] * (width - len(row))]))
    if short:
        out.notes.append(f"{short} rows of '{name}' have fewer cells than the header; the missing ones are empty")
    out.header = [cell.strip() for cell in header]
    return out


def columns_of(path: Path, known: Container[str] = ()) -> list[str]:
    """The names of the columns; [] if the file is no CSV that can be read."""
    try:
        with open(path, "rb") as file:
            start = file.read(65536)
        lines = re.split("\r\n|\n|\r", _decoded(start, path, []))
    except (OSError, UserError):
        return []
    first = _first_line(lines, known)
    delimiter = max(DELIMITERS, key=lambda d: (first.count(d), d == ","))
    return [cell.strip().strip('"') for cell in first.split(delimiter)]


def _text(path: Path, notes: list[str]) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"config.data.root: cannot read '{path}' as CSV: {error.strerror or error}") from error
    return _decoded(content, path, notes)


def _decoded(content: bytes, path: Path, notes: list[str]) -> str:
    """The text of a file in UTF-8, UTF-16 or Windows-1252."""
    if content.startswith(WORKBOOKS):
        raise UserError(f"config.data.root: '{path}' is an Excel workbook; save it as CSV")
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
        notes.append(f"'{printable(path.name)}' is not UTF-8; it is read as Windows-1252 (Latin-1)")
        return content.decode("cp1252", errors="replace")


def _first_line(lines: list[str], known: Container[str]) -> str:
    """The header. Comments and Excel's `sep=;` before it are removed from `lines`.

    known: names of columns. A line such as `#,path,label` or `# path,label` is the header if the next one is not.
    """

    def named(line: str) -> bool:
        cells = re.split("[,;\t|]", line.lstrip("# "))
        return len(cells) > 1 and any(cell.strip().strip('"').lower() in known for cell in cells)

    for number, line in enumerate(lines):
        if line.startswith("#") and named(line):
            after = next((other for other in lines[number + 1 :] if other.strip()), "")
            if not after.startswith("#") and not named(after):
                lines[number] = line if re.match(r"#\s*[,;\t|]", line) else line.lstrip("# ")
                return lines[number]
        if line.startswith("#") or re.fullmatch(r"sep=.\s*", line.strip(), re.I):
            lines[number] = ""
        elif line.strip():
            return line
    return ""


def _rows(name: str, lines: list[str], delimiter: str, out: Cells) -> list[tuple[int, list[str]]]:
    """The header and the rows, each with the number of its first line. Empty lines are left out.

    Where a quote opens a cell and is not closed, as a ditto mark, its line is read alone and without quotes.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    found: list[tuple[int, list[str]]] = []
    apart, start = 0, 0
    reader, base = _reader(lines, 0, delimiter), 0
    while True:
        start = base + reader.line_num
        try:
            row: list[str] | None = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            row, why = None, f"cannot be read: {error} (a cell has at most {MAX_CELL} characters)"
        span = lines[start : base + reader.line_num]
        width = len(found[0][1]) if found else 0
        if len(span) > 1 and (row is None or _swallows(row, span, width, delimiter)):
            row = next(csv.reader(span[:1], delimiter=delimiter, skipinitialspace=True, quoting=csv.QUOTE_NONE))
            apart += 1
            base = start + 1
            reader = _reader(lines, base, delimiter)
        if row is None:
            out.skipped.append(Skipped(f"{name}, line {start + 1}", why, damaged=True))
        elif any(cell.strip() for cell in row):
            found.append((start + 1, row))
    if apart:
        out.notes.append(
            f"in {apart} rows of '{name}' a quote opens a cell and does not close it; there quotes are read as "
            "ordinary characters"
        )
    return found


def _reader(lines: list[str], first: int, delimiter: str) -> Any:
    rest: Iterator[str] = (f"{lines[i]}\n" for i in range(first, len(lines)))
    return csv.reader(rest, delimiter=delimiter, skipinitialspace=True)


def _swallows(row: list[str], span: list[str], width: int, delimiter: str) -> bool:
    """Whether a row of several lines comes from a quote that is not closed, rather than from a cell with line breaks.

    width: number of columns; 0 for the header.
    """
    if len(row) > width > 0 or sum(line.count('"') for line in span) % 2 == 1:
        return True
    return width > 1 and all(line.count(delimiter) == width - 1 for line in span) and _opens_a_cell(span[-1], delimiter)


def _opens_a_cell(line: str, delimiter: str) -> bool:
    """Whether the first quote of a line stands at the start of a cell."""
    before = line.partition('"')[0].rstrip(" ")
    return not before or before.endswith(delimiter)


def need_own(path: Path, headers: Sequence[Sequence[str]], what: str) -> None:
    """Raise `UserError` if the output `path` is a table with another header, such as the list that is read.

    headers: those that the writer gives its tables.
    what: the table that is written, in words.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        first = next(csv.reader(file), [])
    if first not in [list(header) for header in headers]:
        raise UserError(f"--output: '{path}' exists and is not {what}; name another file")
