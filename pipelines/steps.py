"""A pipeline's steps as plain objects, and the local runner: the threads of this process.

Every pipeline here has one shape: elements go through a first step, and what it yields is grouped by key for a second
one. pipelines/beam_engine.py gives the same steps to any Beam runner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
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
    groups: dict[Any, list[Any]] = {}
    for pairs in _each(job.first, job.elements, num_workers):
        for key, value in pairs if job.then is not None else ():
            groups.setdefault(key, []).append(value)
    if job.then is not None:
        _each(job.then, sorted(groups.items(), key=lambda group: group[0]), num_workers)


def _each(step: Step, elements: Sequence[Any], num_workers: int) -> list[list[Any]]:
    """What the step yields for each element, in their order."""
    if not elements:
        return []
    with _set_up(step), ThreadPoolExecutor(num_workers, "worker") as threads:
        return _results([threads.submit(_process, step, element) for element in elements])


@contextmanager
def _set_up(step: Step) -> Iterator[None]:
    step.setup()
    try:
        yield
    finally:
        step.teardown()


def _process(step: Step, element: Any) -> list[Any]:
    return list(step.process(element) or ())


def _results(futures: list[Future[list[Any]]]) -> list[list[Any]]:
    try:
        for future in wait(futures, return_when=FIRST_EXCEPTION).done:
            future.result()
        return [future.result() for future in futures]
    finally:  # an interrupt ends the run as an error does
        for future in futures:
            future.cancel()
