"""The exception for mistakes in the user's input, and the messages for unknown names and for paths."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

# The beginning of an address such as gs://bucket/run, or gs:/bucket/run after it was taken for a path.
ADDRESS = re.compile(r"^([a-z][a-z0-9+.-]+):/", re.I)


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


def unknown(field: str, value: object, choices: Iterable[str]) -> UserError:
    """A `UserError` for a name that is not among `choices`. It suggests the closest choice."""
    names = sorted(choices)
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return UserError(f"{field}: unknown name '{value}'.{hint} Choices: {', '.join(names)}.")


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
