"""Reads and prepares the next batches while the GPU works on this one."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
_END = object()


def one_ahead(items: Iterator[Item], begin: Callable[[Item], Prepared]) -> Iterator[Prepared]:
    """Yields `begin` of every item, called before the item behind it is taken, which is before it is handed out."""
    waiting = deque(islice(items, 1))
    while waiting:
        begun = begin(waiting.popleft())
        waiting.extend(islice(items, 1))
        yield begun


def read_ahead(items: Iterator[Item], prepare: Callable[[Item], Prepared], *, depth: int) -> Iterator[Prepared]:
    """Yields `prepare` of every item, in order, while a thread is up to `depth` items ahead.

    The thread ends with the iteration, also when that is given up; an error in it is raised here.
    """
    ready: queue.Queue = queue.Queue(depth)
    stopped = threading.Event()

    def put(value: object) -> bool:
        while not stopped.is_set():
            try:
                ready.put(value, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put(prepare(item)):
                    return
        except BaseException as error:
            put(error)
        else:
            put(_END)

    thread = threading.Thread(target=work, name="read-ahead", daemon=True)
    thread.start()
    try:
        while (value := ready.get()) is not _END:
            if isinstance(value, BaseException):
                raise value
            yield value
    finally:
        stopped.set()
        thread.join()
