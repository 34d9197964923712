"""Names of classes as figures can show them: short, different from each other, in letters that their font has."""

from __future__ import annotations

from collections.abc import Sequence

LENGTH = 16
NUMBERED = 12  # more classes are numbered
_LAST_LETTER = 0x24F  # of the Latin alphabets; figures have no font for others on every machine


def shown(names: Sequence[str]) -> list[str]:
    """The names for the ticks of an axis or a legend, in order."""
    if len(names) > NUMBERED or any(ord(letter) > _LAST_LETTER for name in names for letter in name):
        return [str(number) for number in range(1, len(names) + 1)]
    short = [_middle_left_out(name) for name in names]
    if len(set(short)) < len(short):
        short = [f"{number} {name}" for number, name in enumerate(short, start=1)]
    return [name.replace("$", r"\$") for name in short]  # a dollar begins a formula


def note(names: Sequence[str]) -> str:
    """What the axis says if the classes are numbered; "" if they have their names."""
    return "classes numbered in the order of the table" if shown(names)[:1] == ["1"] else ""


def _middle_left_out(name: str) -> str:
    if len(name) <= LENGTH:
        return name
    return f"{name[: LENGTH // 2]}…{name[-(LENGTH - LENGTH // 2 - 1) :]}"
