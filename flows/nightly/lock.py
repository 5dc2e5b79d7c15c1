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
from typing import IO

from features.errors import DataError

_POLL_SECONDS = 1.0


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
        wait_seconds: how long to wait for another holder; 0 gives up at once.

    Raises:
        BusyError: another process holds it; tells which and since when.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as lock:
        deadline = time.monotonic() + wait_seconds
        while not _try(lock):
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


def _holder(lock: IO[str]) -> str:
    lock.seek(0)
    try:
        holder = json.loads(lock.read())
    except json.JSONDecodeError:
        return "a process that has just begun"
    here = holder["host"] == socket.gethostname()
    if here and not Path(f"/proc/{holder['pid']}").exists() and Path("/proc/self").exists():
        return f"what process {holder['pid']} ({holder['task']}) left behind when it was killed, which ends in seconds"
    return f"process {holder['pid']} on {holder['host']} since {holder['since']}: {holder['task']}"
