"""One retrain per repository: a lock of the kernel's that names its holder and lasts until the last writer is gone."""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from features.errors import DataError

_POLL_SECONDS = 1.0
# A killed holder's processes end within `flows.launcher.GRACE_SECONDS`; a loaded machine takes longer.
_LEFTOVER_SECONDS = 60.0


class BusyError(DataError):
    """Another retrain is at work."""


@dataclass(frozen=True)
class HeldLock:
    """The lock while it is held; a child that inherits `descriptor` keeps it held after this process has died."""

    descriptor: int


@contextmanager
def retrain_lock(path: Path, *, task: str, wait_seconds: float) -> Iterator[HeldLock]:
    """Holds the lock file.

    Args:
        path: the lock file, made if it is missing and left behind.
        task: what the holder does, for whoever finds it held.
        wait_seconds: how long to wait for another holder; 0 gives up at once. What a killed holder left behind is
            waited for in any case: it ends by itself.

    Raises:
        BusyError: another process holds it; tells which and since when.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        start = time.monotonic()
        while not _try(lock):
            deadline = start + (max(wait_seconds, _LEFTOVER_SECONDS) if _holder_is_dead(lock) else wait_seconds)
            if time.monotonic() >= deadline:
                raise BusyError(f"{path}: held by {_holder(lock)}; wait for it or stop it")
            time.sleep(min(_POLL_SECONDS, max(deadline - time.monotonic(), 0.01)))
        lock.truncate(0)
        since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since, "task": task}
        lock.write(json.dumps(holder))
        lock.flush()
        yield HeldLock(lock.fileno())


def _try(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(lock: IO[str]) -> dict[str, Any] | None:
    lock.seek(0)
    try:
        return json.loads(lock.read())
    except json.JSONDecodeError:
        return None


def _holder_is_dead(lock: IO[str]) -> bool:
    """Whether the one that took the lock is gone, here, and only what it started still holds it."""
    holder = _read(lock)
    if holder is None or holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False


def _holder(lock: IO[str]) -> str:
    holder = _read(lock)
    if holder is None:
        return "a process that has just begun"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}: {holder['task']}"
