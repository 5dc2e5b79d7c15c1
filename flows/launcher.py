"""Runs one command in a process group of its own and ends the whole group when its parent is gone.

The parent holds the only write end of this process's standard input. The kernel closes that end when the parent dies,
even by `kill -9`, so end-of-file is the order to stop; the parent closes it to cancel. PR_SET_PDEATHSIG would not do:
it reaches the direct child alone, fires when the starting *thread* ends, and exists on Linux only.

Started by its path with `python -P`: standard library only.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

GRACE_SECONDS = 5.0


def main(command: list[str]) -> int:
    """Runs the command; returns its exit status, 128 + signal when a signal ended it."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)
    stopping = threading.Event()
    watcher = threading.Thread(target=_end_with_parent, args=(child.pid, stopping), daemon=True)
    watcher.start()
    status = child.wait()
    if stopping.is_set():
        watcher.join()
    _signal_group(child.pid, signal.SIGKILL)
    return status if status >= 0 else 128 - status


def _end_with_parent(group: int, stopping: threading.Event) -> None:
    """Waits for end-of-file, then lets the group end by itself for a while before killing it."""
    os.read(sys.stdin.fileno(), 1)  # unbuffered: a buffered read would hold its lock at interpreter exit
    stopping.set()
    deadline = time.monotonic() + GRACE_SECONDS
    alive = _signal_group(group, signal.SIGTERM)
    while alive and time.monotonic() < deadline:
        time.sleep(0.05)
        alive = _signal_group(group, 0)
    _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: int) -> bool:
    """Signals every process of the group; false when none is left."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
