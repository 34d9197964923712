"""The lock of a workdir: one process works in it at a time."""

from __future__ import annotations

import datetime
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
from filelock import FileLock, Timeout

from deblur_mae_jax.data import buckets, privacy
from deblur_mae_jax.errors import NotSaved, UserError
from deblur_mae_jax.workdir.run_folder import Workdir, write_json

# A store has no locks that end with their owner. The owner writes a number every `BEAT` seconds, and a process that
# finds the number unchanged for `SILENCE` seconds takes the owner for dead.
BEAT, SILENCE, SETTLE = 20.0, 70.0, 2.0


@contextmanager
def hold(workdir: Workdir) -> Iterator[None]:
    """Keep other processes out of `workdir`; its folder is created if needed, or copied from its address.

    The operating system frees the lock when its owner ends, however it ends, so the lock of a dead process is taken
    over. On several hosts, process 0 holds the lock for all. Raises `UserError` that names the owner.
    """
    if jax.process_index() != 0:
        if workdir.mirror is not None:
            workdir.mirror.pull()
        privacy.use(workdir.path)
        try:
            yield
        finally:
            privacy.use(None)
        return
    try:
        workdir.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(workdir.lock, timeout=0)
        lock.acquire()
    except Timeout:
        other = _read(workdir.owner) or {}
        if other.get("host", socket.gethostname()) == socket.gethostname():
            raise _in_use(workdir, other) from None
        # A network drive keeps the lock of a machine that crashed for a while.
        print(f"the workdir is in use by {_name(other)}; waiting {SILENCE:.0f} s for it", flush=True)
        try:
            lock.acquire(timeout=SILENCE)
        except (Timeout, OSError):
            raise _in_use(workdir, other) from None
    except NotADirectoryError as error:
        raise UserError(f"--workdir: cannot use '{workdir.path}': {error.strerror}") from error
    except OSError as error:
        raise UserError(f"--workdir: cannot write to '{workdir.path}': {error.strerror or error}") from error
    try:
        since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        owner = {"host": socket.gethostname(), "process": os.getpid(), "since": since}
        if workdir.mirror is None:
            privacy.use(workdir.path)
            _write_owner(workdir, owner)
            yield
        else:
            _write_owner(workdir, owner)
            with _held_in_store(workdir, owner | {"boot": _boot()}):
                privacy.use(workdir.path)
                yield
    finally:
        privacy.use(None)
        workdir.owner.unlink(missing_ok=True)
        lock.release()


def _write_owner(workdir: Workdir, owner: dict[str, Any]) -> None:
    try:
        write_json(workdir.owner, owner)
    except OSError as error:  # a full disk
        raise UserError(f"--workdir: cannot write to '{workdir.path}': {error.strerror or error}") from error


@contextmanager
def _held_in_store(workdir: Workdir, owner: dict[str, Any]) -> Iterator[None]:
    """Hold the lock of a store, and keep the folder on this machine a copy of it."""
    assert workdir.mirror is not None
    place = workdir.mirror.remote / workdir.owner.name
    with buckets.reaching("--workdir", workdir.mirror.remote, "read"):
        _wait_for_silence(workdir, place, owner)
    with buckets.reaching("--workdir", workdir.mirror.remote, "written"):
        write_json(place, owner | {"beat": 0})
        time.sleep(SETTLE)  # another machine may have written at the same time; the last one has the lock
        now = _read(place)
    if not _is_same(now, owner):
        raise _in_use(workdir, now)
    stop = threading.Event()
    thread = threading.Thread(target=_beat, args=(workdir, place, owner, stop), daemon=True)
    thread.start()
    done = True
    try:
        workdir.mirror.pull()
        yield
        done = workdir.mirror.finish()
    except BaseException:
        workdir.mirror.finish()
        raise
    finally:
        stop.set()
        thread.join()
        with suppress(Exception):
            if _is_same(_read(place), owner):
                place.unlink(missing_ok=True)
    if not done:
        raise NotSaved(f"--workdir: not every file could be copied to '{workdir.mirror.remote}'; see above")


def _beat(workdir: Workdir, place: Any, owner: dict[str, Any], stop: threading.Event) -> None:
    """Show that the owner lives, until `stop`. Ask the run to stop if another machine has taken the lock."""
    number = 0
    while not stop.wait(BEAT):
        number += 1
        with suppress(Exception):  # a store that cannot be reached is reported by what matters more
            now = _read(place)
            if now is not None and not _is_same(now, owner):
                assert workdir.mirror is not None
                workdir.mirror.lost = True
                print(f"{workdir.mirror.remote} was taken over by {_name(now)}; this run stops", flush=True)
                os.kill(os.getpid(), signal.SIGTERM)
                return
            write_json(place, owner | {"beat": number})


def _is_same(now: dict[str, Any] | None, owner: dict[str, Any]) -> bool:
    return now is not None and all(now.get(key) == value for key, value in owner.items())


def _wait_for_silence(workdir: Workdir, place: Any, owner: dict[str, Any]) -> None:
    """Return when no other process holds the lock of a store. Raises `UserError` if one does."""
    other = _read(place)
    here = other is not None and (other.get("host"), other.get("boot")) == (owner["host"], owner["boot"])
    if other is None or (here and not _lives(other.get("process"))):
        return
    print(f"the workdir was left by {_name(other)}; waiting {SILENCE:.0f} s for a sign of it", flush=True)
    end = time.monotonic() + SILENCE
    while time.monotonic() < end:
        time.sleep(min(5.0, SILENCE / 4))
        now = _read(place)
        if now is None:
            return
        if now != other:
            raise _in_use(workdir, now)


def _lives(process: Any) -> bool:
    """Whether a process of this machine is running; its number may belong to another program by now."""
    try:
        os.kill(int(process), 0)
    except PermissionError:  # of another user
        return True
    except (OSError, TypeError, ValueError):
        return False
    return int(process) != os.getpid()


def _boot() -> str:
    """What tells machines of the same name apart; it changes when a machine starts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _read(path: Any) -> dict[str, Any] | None:
    """The owner that a lock names; {} if it cannot be understood, `None` without a lock."""
    for attempt in range(3):
        try:
            owner = json.loads(path.read_text())
            return owner if isinstance(owner, dict) else {}
        except FileNotFoundError:
            return None
        except ValueError:
            return {}
        except OSError:  # of a store also: the file was written again while it was read
            if isinstance(path, Path):
                return {}
            if attempt == 2:
                raise
    return {}


def _name(owner: dict[str, Any] | None) -> str:
    if owner is None or not {"host", "process", "since"} <= owner.keys():
        return "another process"
    return f"process {owner['process']} on host {owner['host']} since {owner['since']}"


def _in_use(workdir: Workdir, owner: dict[str, Any] | None) -> UserError:
    where = workdir.path if workdir.mirror is None else workdir.mirror.remote
    return UserError(f"--workdir: '{where}' is in use by {_name(owner)}. Use another workdir")
