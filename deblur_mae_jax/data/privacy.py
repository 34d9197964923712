"""Names for DICOM images and patients that do not identify them: keyed hashes (HMAC-SHA256).

The key is random, and belongs to a workdir: its file `dicom_key` can be read by its owner alone, and is never part of
a report or an export. With it, `scripts/find_dicom.py` finds the file of a name again.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
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
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32) + "\n")
        try:
            os.link(draft, path)  # fails if another process was first
        except FileExistsError:
            pass
        finally:
            os.unlink(draft)
    except FileNotFoundError:  # the workdir does not exist, as in a dry run
        return secrets.token_bytes(32)
    return bytes.fromhex(path.read_text().strip())


def pseudonym(*parts: str) -> str:
    """A name that stays the same for the same parts and key, and does not tell them."""
    return hmac.new(key(), "\0".join(parts).encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[:LENGTH]


def digest(*parts: str) -> str:
    """A hash without a key, for fingerprints of whole sets only."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:LENGTH]
