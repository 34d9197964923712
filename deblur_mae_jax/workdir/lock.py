"""The lock of a workdir: one process works in it at a time."""

from __future__ import annotations

import datetime
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import jax
from filelock import FileLock, Timeout

from deblur_mae_jax.data import privacy
from deblur_mae_jax.errors import UserError
from deblur_mae_jax.workdir.run_folder import Workdir, write_json


@contextmanager
def hold(workdir: Workdir) -> Iterator[None]:
    """Keep other processes out of `workdir`; its folder is created if needed.

    The operating system frees the lock when its owner ends, however it ends, so the lock of a dead process is taken
    over. On several hosts, process 0 holds the lock for all. Raises `UserError` that names the owner.
    """
    if jax.process_index() != 0:
        privacy.use(workdir.path)
        yield
        privacy.use(None)
        return
    try:
        workdir.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(workdir.lock, timeout=0)
        lock.acquire()
    except Timeout:
        raise UserError(f"--workdir: '{workdir.path}' is in use by {_owner(workdir)}. Use another workdir") from None
    except NotADirectoryError as error:
        raise UserError(f"--workdir: cannot use '{workdir.path}': {error.strerror}") from error
    except OSError as error:
        raise UserError(f"--workdir: cannot write to '{workdir.path}': {error.strerror or error}") from error
    try:
        privacy.use(workdir.path)
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(workdir.owner, {"host": socket.gethostname(), "process": os.getpid(), "since": since})
        yield
    finally:
        privacy.use(None)
        workdir.owner.unlink(missing_ok=True)
        lock.release()


def _owner(workdir: Workdir) -> str:
    try:
        owner = json.loads(workdir.owner.read_text())
        return f"process {owner['process']} on host {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
