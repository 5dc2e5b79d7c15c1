"""A pipeline's steps as plain objects, and the local runner: the threads of this process.

Every pipeline here has one shape: elements go through a first step, and what it yields is grouped by key for a second
one. pipelines/beam_engine.py gives the same steps to any Beam runner.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any


class Step:
    """What a worker does with one element; a retried attempt must leave the same as the first.

    One object may serve several threads at once. It travels to workers on other machines pickled, before `setup`.
    """

    def setup(self) -> None:
        """Loads what all elements need."""

    def teardown(self) -> None:
        """Lets go of what `setup` took."""

    def process(self, element: Any) -> Iterable[Any] | None:
        """Handles one element; yields (key, value) pairs when another step follows."""
        raise NotImplementedError


@dataclass(frozen=True)
class Job:
    """A pipeline.

    Attributes:
        elements: what there is to do, in the order in which it is best begun.
        first: gets each element.
        then: gets a (key, values) pair for every key that `first` yields, when there is such a step.
        key_type: of the keys, for the coders of runners whose workers share no memory.
    """

    elements: Sequence[Any]
    first: Step
    then: Step | None = None
    key_type: Any = int


def run_in_threads(job: Job, num_workers: int) -> None:
    """Runs a job in threads of this process: NumPy, Arrow, Polars and OpenSSL release the interpreter lock.

    Raises:
        Exception: what a step raised first; elements that were not begun by then are not begun any more.
    """
    if not job.elements:
        return
    with ExitStack() as ends, ThreadPoolExecutor(num_workers, "worker") as threads:
        _set_up(job.first, ends)
        # The second step sets itself up while the first works, for the lookups of a shard take a while to load.
        ready = threads.submit(_set_up, job.then, ends)
        yielded = _each(job.first, job.elements, threads, ready)
        if job.then is not None:
            _each(job.then, _grouped(yielded), threads, ready)


def _set_up(step: Step | None, ends: ExitStack) -> None:
    if step is not None:
        step.setup()
        ends.callback(step.teardown)


def _grouped(yielded: list[list[Any]]) -> list[tuple[Any, list[Any]]]:
    groups: dict[Any, list[Any]] = {}
    for key, value in (pair for pairs in yielded for pair in pairs):
        groups.setdefault(key, []).append(value)
    return sorted(groups.items(), key=lambda group: group[0])


def _each(step: Step, elements: Sequence[Any], threads: ThreadPoolExecutor, ready: Future[None]) -> list[list[Any]]:
    """What the step yields for each element, in their order; raises what `ready` raises, too."""
    stop = threading.Event()

    def attempt(element: Any) -> list[Any]:
        if stop.is_set():
            return []
        try:
            return list(step.process(element) or ())
        except BaseException:
            stop.set()
            raise

    futures = [threads.submit(attempt, element) for element in elements]
    everything: list[Future[Any]] = [ready, *futures]
    try:
        for done in wait(everything, return_when=FIRST_EXCEPTION).done:
            done.result()
        return [future.result() for future in futures]
    finally:  # an interrupt ends the run as an error does
        stop.set()
