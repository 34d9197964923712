"""Names for DICOM images and patients that do not identify them: keyed hashes (HMAC-SHA256).

The key is random, and belongs to a workdir: its file `dicom_key` can be read by its owner alone, and is never part of
a report or an export. With it, `scripts/find_dicom.py` finds the file of a name again.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import time
from pathlib import Path

from deblur_mae_jax.errors import UserError

KEY_FILE = "dicom_key"
LENGTH = 16

_folder: Path | None = None
_make = False
_keys: dict[Path | None, bytes] = {}


def use(folder: Path | None, make: bool = False) -> None:
    """Take the key of this workdir for the DICOM images that are listed from now on. It is made when it is needed.

    folder: a workdir, or `None` for a key that is forgotten when the process ends.
    make: make the folder when the key is needed. If not, and without the folder, the key is forgotten too.
    """
    global _folder, _make
    _folder, _make = folder, make


def key() -> bytes:
    """The key of the workdir in use. Several processes that start together agree on one key."""
    if _folder not in _keys:
        if _folder is not None and _make:
            try:
                _folder.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot make the folder '{_folder}' for the key of names: {error.strerror}") from error
        _keys[_folder] = secrets.token_bytes(32) if _folder is None else _stored(_folder / KEY_FILE)
    return _keys[_folder]


def _stored(path: Path) -> bytes:
    try:
        if not path.exists():
            _make_key(path)
        for _ in range(50):
            text = path.read_text().strip()
            if len(text) == 64:
                return bytes.fromhex(text)
            time.sleep(0.1)  # another process is writing it
    except FileNotFoundError:  # the workdir does not exist, as in a dry run
        return secrets.token_bytes(32)
    except (OSError, ValueError) as error:
        raise UserError(f"the key of names '{path}' cannot be read or made: {error}") from error
    raise UserError(f"the key of names '{path}' does not hold 64 hexadecimal digits; put the file back that it was")


def _make_key(path: Path) -> None:
    """Write a new key, unless another process is first."""
    text = secrets.token_hex(32) + "\n"

    def write(place: Path) -> None:
        with os.fdopen(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)

    draft = path.with_name(f"{path.name}.{os.getpid()}_{secrets.token_hex(4)}.tmp")
    write(draft)
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    except OSError:  # a mounted bucket has no links
        with contextlib.suppress(FileExistsError):
            write(path)
    finally:
        os.unlink(draft)


def pseudonym(*parts: str) -> str:
    """A name that stays the same for the same parts and key, and does not tell them."""
    return hmac.new(key(), "\0".join(parts).encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:LENGTH]


def digest(*parts: str) -> str:
    """A hash without a key, for fingerprints of whole sets only."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:LENGTH]
