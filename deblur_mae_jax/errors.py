"""The one exception a user of the command line is meant to see."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input: one line that names the field, the value and the choices.

    `main.py` prints the message without a traceback and exits with status 2.
    """


def unknown(field: str, value: object, choices: Iterable[str]) -> UserError:
    """`UserError` for a name that is not among `choices`, with the closest one suggested."""
    names = sorted(choices)
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.5)
    hint = f" Did you mean '{close[0]}'?" if close else ""
    return UserError(f"{field}: unknown name '{value}'.{hint} Choices: {', '.join(names)}.")
