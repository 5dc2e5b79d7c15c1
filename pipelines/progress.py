"""Progress lines in the log while a pipeline runs: done and total, rate, time left."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_LOG = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 5.0


@dataclass(frozen=True)
class Phase:
    """A part of the work: what is counted, how many there are, and a count of those finished so far."""

    what: str
    total: int
    done: Callable[[], int]


@contextmanager
def log_progress(*phases: Phase) -> Iterator[None]:
    """Logs every few seconds how far the current phase is, until the block ends; a phase ends with its last thing.

    The phases' counts are taken in another thread.
    """
    stop = threading.Event()
    thread = threading.Thread(target=_watch, args=(phases, stop), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _watch(phases: tuple[Phase, ...], stop: threading.Event) -> None:
    for phase in phases:
        start = time.monotonic()
        while not stop.wait(_SECONDS_BETWEEN_LINES):
            done = phase.done()
            _LOG.info("%s", progress_line(phase.what, done, phase.total, seconds=time.monotonic() - start))
            if done >= phase.total:
                break


def progress_line(what: str, done: int, total: int, *, seconds: float) -> str:
    """One line of progress after so many seconds."""
    rate = done / seconds if seconds > 0 else 0.0
    left = f"{(total - done) / rate:,.0f} s left" if rate else "time left unknown"
    return f"{done:,} of {total:,} {what}, {rate:,.0f} a second, {left}"
