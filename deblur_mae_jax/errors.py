"""The exception for mistakes in the user's input, and the messages for unknown names and for paths."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# The beginning of an address such as gs://bucket/run, or gs:/bucket/run after it was taken for a path.
ADDRESS = re.compile(r"^([a-z][a-z0-9+.-]+):/", re.I)
# The exit status for a failure that may pass (EX_TEMPFAIL of sysexits.h). Schedulers start the command again after it.
TRY_AGAIN = 75


class UserError(ValueError):
    """Bad input: one line that names the field, the value and the choices.

    `main.py` prints the message without a traceback and exits with status 2.
    """


class StoreError(UserError):
    """An object store cannot be reached, or failed: the same command may succeed later.

    `main.py` prints the message and exits with status 75, after which schedulers start the run again.
    """


class NotSaved(RuntimeError):
    """Results could not be copied to where the user wants them. `main.py` exits with status 4."""


def one_line(error: BaseException, most: int = 200) -> str:
    """The message of an error in one line of at most `most` characters, or its kind if it has no message."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def unknown(field: str, value: object, choices: Iterable[str]) -> UserError:
    """A `UserError` for a name that is not among `choices`. It suggests the closest choice."""
    names = sorted(choices)
    return UserError(f"{field}: unknown name '{value}'.{did_you_mean(value, names, 0.5)} Choices: {', '.join(names)}.")


def did_you_mean(value: object, choices: Iterable[str], cutoff: float = 0.6) -> str:
    """` Did you mean 'x'?` with the closest choice; "" if none is close.

    cutoff: the least similarity, 0 to 1.
    """
    close = difflib.get_close_matches(str(value), sorted(choices), n=1, cutoff=cutoff)
    return f" Did you mean '{close[0]}'?" if close else ""


def pair(field: str, values: Sequence[Any], example: str) -> tuple[float, float]:
    """Two numbers (low, high). Raises `UserError` that names `field` and gives an example."""
    if len(values) != 2 or not all(isinstance(value, float | int) for value in values):
        raise UserError(f"{field}={tuple(values)} must be two numbers (low, high), such as {example}")
    return values[0], values[1]


def local_path(path: str | Path, field: str) -> Path:
    """A path of this machine, with "~" expanded.

    field: the flag or field that names it.
    Raises `UserError` for an address such as gs://bucket/run, which would otherwise be a local folder called "gs:".
    """
    found = ADDRESS.match(str(path))
    if found:
        raise UserError(
            f"{field}: '{path}' is an address ({found[1]}), and this must be a path of this machine. Pack a set "
            "(scripts/pack_data.py) and copy it to the bucket, or mount the bucket and name the folder of the mount"
        )
    return Path(path).expanduser()


def counted(number: int, noun: str) -> str:
    """`1 image`, `3 images`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")
