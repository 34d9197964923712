"""Spellings: which values of a table or a name mean the same, and which say that nothing is known."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Container, Sequence

from deblur_mae_jax.data.naming import UNLABELLED

# Cells that mean that nothing is known, as tables write them.
MISSING = {"", "nan", "na", "n/a", "n.a.", "#n/a", "null", "<na>", "nat", "none", "-nan", "-", "--", "?", "unknown",
           "unk", "missing", "#ref!", "#value!", "#name?", "#num!", "#null!", "#div/0!"}  # fmt: skip
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad"))


def canonical(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """Give values that mean the same one spelling: blanks at the ends, capitals, and `1` beside `1.0` do not count.

    Returns the values, with the most frequent spelling of each and "" where nothing is known, and lines that list the
    spellings that were joined.
    """
    stripped = [" ".join(composed(str(v)).split()) for v in values]
    counts = Counter(v for v in stripped if not is_missing(v))
    by_key: dict[str, list[str]] = {}
    for value in sorted(counts, key=lambda v: (-counts[v], _is_float_of_integer(v), v)):
        by_key.setdefault(key(value), []).append(value)
    chosen = {
        same: _integer(spellings[0]) if len(spellings) > 1 else spellings[0] for same, spellings in by_key.items()
    }
    lines = [
        f"{', '.join(repr(s) for s in spellings)} are taken as one name: '{chosen[same]}'"
        for same, spellings in by_key.items()
        if len(spellings) > 1
    ]
    return ["" if is_missing(v) else chosen[key(v)] for v in stripped], lines


def known(field: str, values: Sequence[str], notes: list[str], declared: Container[str] = ()) -> list[str]:
    """`canonical`, with its lines and with the words that mean that nothing is known added to `notes`.

    field: "label", "group" or "split".
    declared: values that are names whatever they mean, such as a class called "none".
    """
    found, lines = canonical(values)
    found = [new or (old if old in declared else "") for old, new in zip(values, found, strict=True)]
    lost = Counter(old for old, new in zip(values, found, strict=True) if old.strip() and not new)
    if lost:
        words = ", ".join(f"'{word}'" for word in sorted(lost))
        notes.append(f"{sum(lost.values())} images have no {field}: {words} means that it is not known")
    notes += [f"{field}: {line}" for line in lines]
    return found


def one_patient(groups: Sequence[str], notes: list[str]) -> list[str]:
    """The patients of images, each in one spelling. Adds to `notes` what was joined, and what looks wrong."""
    joined, lines = canonical(groups)
    notes += [f"patients: {line}" for line in lines]
    names = [new or old for new, old in zip(joined, groups, strict=True)]  # a folder may be called "none"
    apart: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        apart.setdefault(re.sub(r"(?<!\d)0+(?=\d)", "", key(name)), []).append(name)
    doubtful = [spellings for spellings in apart.values() if len(spellings) > 1]
    if doubtful:
        shown = ", ".join(f"'{name}'" for name in doubtful[0][:3])
        notes.append(
            f"{len(doubtful)} patients may be counted twice, because their names differ in leading zeros alone: {shown}"
        )
    short = next((name for name in names if re.fullmatch(r"\d([.,]\d+)?E\+?\d+", name, re.I)), None)
    if short is not None:
        notes.append(
            f"the patient '{short}' is a long number that a table program has shortened: several patients may have "
            "become one"
        )
    return names


def composed(text: str) -> str:
    """Text in one Unicode form (NFC), without invisible characters."""
    return unicodedata.normalize("NFC", text).translate(_INVISIBLE)


def is_missing(text: str) -> bool:
    """Whether the cell of a table says that nothing is known: empty, "nan", "NA", "null", "unlabelled" and the like."""
    return text.strip().lower() in MISSING or bool(UNLABELLED.match(text.strip()))


def key(value: str) -> str:
    """What two spellings of a class or a patient have in common."""
    return _integer(value).casefold()


def _is_float_of_integer(value: str) -> bool:
    return bool(re.fullmatch(r"-?\d+\.0+", value))


def _integer(value: str) -> str:
    """`1.0` as `1`, as tables with empty cells write whole numbers."""
    return value.split(".")[0] if _is_float_of_integer(value) else value
