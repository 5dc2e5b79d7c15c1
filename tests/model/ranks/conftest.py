"""Ranks as processes: forked from a server that has imported the model, so that each test pays for its work alone."""

from __future__ import annotations

import multiprocessing
import pickle
import socket
from collections.abc import Callable
from typing import Any

import pytest

from tests.model.ranks import rank_functions

_SECONDS = 60


def _rank(name: str, rank: int, size: int, *, port: int, argument: Any, results: Any) -> None:
    with rank_functions.rank_of(rank, size, port) as world:
        value = getattr(rank_functions, name)(world, argument)
    # As bytes: tensors would otherwise travel through the memory of a process that has ended.
    results.put((rank, pickle.dumps(value)))


@pytest.fixture(scope="session")
def run_ranks() -> Callable[..., list[Any]]:
    """Calls a function of rank_functions as each of `size` ranks; returns what they return, by rank."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.model.ranks.rank_functions", "torch._dynamo"])

    def run(function: Callable, size: int, argument: Any = None) -> list[Any]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        results = context.SimpleQueue()
        processes = [
            context.Process(
                target=_rank,
                args=(function.__name__, rank, size),
                kwargs={"port": port, "argument": argument, "results": results},
            )
            for rank in range(size)
        ]
        for process in processes:
            process.start()
        found = {}
        for process in processes:
            process.join(_SECONDS)
            assert process.exitcode == 0, f"a rank ended with {process.exitcode}"
            while not results.empty():
                rank, value = results.get()
                found[rank] = pickle.loads(value)
        return [found[rank] for rank in range(size)]

    return run
