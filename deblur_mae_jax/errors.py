"""The exception for mistakes in the user's input, and the message for an unknown name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one line that names the field, the value and the choices.

    `main.py` prints the message without a traceback and exits with status 2.
    """


def unknown(field: str, value: object, choices: Iterable[str]) -> UserError:
    """A `UserError` for a name that is not among `choices`. It suggests the closest choice."""
    names = sorted(choices)
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return UserError(f"{field}: unknown name '{value}'.{hint} Choices: {', '.join(names)}.")
