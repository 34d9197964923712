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

KEY_FILE = "dicom_key"
LENGTH = 16

_folder: Path | None = None
_keys: dict[Path | None, bytes] = {}


def use(folder: Path | None) -> None:
    """Take the key of this workdir for the DICOM images that are listed from now on. It is made when it is needed.

    folder: a workdir, or `None` for a key that is forgotten when the process ends.
    """
    global _folder
    _folder = folder


def key() -> bytes:
    """The key of the workdir in use. Several processes that start together agree on one key."""
    if _folder not in _keys:
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
