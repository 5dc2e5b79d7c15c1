"""A progress line in the log while a pipeline runs: done and total, rate, time left."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LOG = logging.getLogger(__name__)
_SECONDS_BETWEEN_LINES = 5.0


@contextmanager
def log_progress(what: str, total: int, done: Callable[[], int]) -> Iterator[None]:
    """Logs how far `done()` is on the way to `total` every few seconds until the block ends.

    Args:
        what: the things that are counted, as the log names them.
        total: how many there are.
        done: counts those that are finished; called from another thread.
    """
    stop = threading.Event()
    start = time.monotonic()

    def watch() -> None:
        while not stop.wait(_SECONDS_BETWEEN_LINES):
            _LOG.info("%s", progress_line(what, done(), total, seconds=time.monotonic() - start))

    thread = threading.Thread(target=watch, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def progress_line(what: str, done: int, total: int, *, seconds: float) -> str:
    """One line of progress after so many seconds."""
    rate = done / seconds if seconds > 0 else 0.0
    left = f"{(total - done) / rate:,.0f} s left" if rate else "time left unknown"
    return f"{done:,} of {total:,} {what}, {rate:,.0f} a second, {left}"
