"""The ranks of a run: one process, or those that torchrun started.

    python -m model.train                                      one rank
    torchrun --nproc-per-node 2 -m model.train                 two

Two groups: tensors of the model go through NCCL on GPUs and gloo on CPUs; what the host must know to go on, like the
candidates of a step, goes through gloo and never waits for a GPU. All ranks call everything here alike and in the same
order.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from features.errors import DataError

Value = TypeVar("Value")
# A dead rank's connections break at once; its zombie shows a little later.
_SECONDS_TO_FIND_THE_DEAD = 2.0


@dataclass(frozen=True)
class Peer:
    """A rank's process."""

    host: str
    pid: int


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run.

    Attributes:
        rank: of this process, 0 up to size.
        size: number of ranks.
        host_group: for values of the host; None with one rank.
        reader_group: the same for the thread that reads ahead, whose calls come in an order of their own.
        peers: every rank's process.
    """

    rank: int = 0
    size: int = 1
    host_group: dist.ProcessGroup | None = None
    reader_group: dist.ProcessGroup | None = None
    peers: tuple[Peer, ...] = ()

    def for_reader(self) -> Self:
        """The same ranks for a thread of its own."""
        return replace(self, host_group=self.reader_group)

    @property
    def is_first(self) -> bool:
        """Whether this rank logs and writes what all share."""
        return self.rank == 0

    def own_device(self, device: torch.device) -> torch.device:
        """The device of this rank: on CUDA, the one that joined_world chose, or the first."""
        return torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device

    def part(self, count: int) -> slice:
        """This rank's share of `count` things in order; shares differ by at most one and may be empty."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def start_sum(self, tensor: Tensor) -> Callable[[], None]:
        """Begins to replace a tensor by its sum over ranks; what is returned ends it, without stopping a GPU's host."""
        if self.size == 1:
            return lambda: None
        with self._contact():
            work = dist.all_reduce(tensor, async_op=True)

        def finish() -> None:
            with self._contact():
                work.wait()

        return finish

    def exchange(self, values_V: Tensor, send_counts: Sequence[int], receive_counts: Sequence[int]) -> Tensor:
        """Sends the first send_counts[0] rows to rank 0 and so on; returns what the ranks sent here, by rank."""
        return self.start_exchange(values_V, send_counts, receive_counts)()

    def start_exchange(
        self, values_V: Tensor, send_counts: Sequence[int], receive_counts: Sequence[int], *, into: Tensor | None = None
    ) -> Callable[[], Tensor]:
        """Begins an exchange, received `into` contiguous rows if they are given.

        Returns:
            what ends it, without stopping a GPU's host, and gives what was received.
        """
        received = values_V.new_empty((sum(receive_counts), *values_V.shape[1:])) if into is None else into
        values_V = values_V.contiguous()
        with self._contact():
            work = dist.all_to_all_single(received, values_V, list(receive_counts), list(send_counts), async_op=True)

        def finish() -> Tensor:
            with self._contact():
                work.wait()
            return received

        return finish

    def sum_host(self, array: np.ndarray) -> np.ndarray:
        """The sum of a host array over ranks."""
        return self.gather_host(array).sum(axis=0)

    def gather_host(self, array: np.ndarray) -> np.ndarray:
        """(ranks, ...) the host arrays of all ranks, equal in shape."""
        if self.size == 1:
            return array[None]
        mine = torch.from_numpy(np.ascontiguousarray(array))
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        with self._contact():
            dist.all_gather(parts, mine, group=self.host_group)
        return np.stack([part.numpy() for part in parts])

    def gather_objects(self, value: Value) -> list[Value]:
        """What every rank passes, by rank; for small things."""
        if self.size == 1:
            return [value]
        values: list = [None] * self.size
        with self._contact():
            dist.all_gather_object(values, value, group=self.host_group)
        return values

    def from_first(self, value: Value) -> Value:
        """What rank 0 passes."""
        if self.size == 1:
            return value
        values = [value]
        with self._contact():
            dist.broadcast_object_list(values, src=0, group=self.host_group)
        return values[0]

    def barrier(self) -> None:
        """Waits for all ranks."""
        self.gather_host(np.zeros(1))

    @contextmanager
    def _contact(self) -> Iterator[None]:
        """Turns a broken connection into one line that names whose process is gone."""
        try:
            yield
        except RuntimeError as error:
            gone = self._gone()
            reason = str(error).splitlines()[0]
            raise DataError(
                f"rank {self.rank} of {self.size} lost contact: "
                f"{', '.join(gone) or 'a rank'} is gone ({reason}); run it again, it goes on at its last checkpoint"
            ) from None

    def _gone(self) -> list[str]:
        """The ranks of this host whose process has ended."""
        here, deadline = socket.gethostname(), time.monotonic() + _SECONDS_TO_FIND_THE_DEAD
        while True:
            gone = [
                f"rank {rank} (process {peer.pid})"
                for rank, peer in enumerate(self.peers)
                if peer.host == here and not _runs(peer.pid)
            ]
            if gone or time.monotonic() > deadline:
                return gone
            time.sleep(0.05)


def _runs(pid: int) -> bool:
    """Whether a process is there and not a zombie."""
    try:
        # the state follows the name, which is in parentheses and may hold anything
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


@contextmanager
def joined_world(device: torch.device) -> Iterator[World]:
    """The ranks that torchrun started, or the one rank of a process that it did not start.

    Args:
        device: where the model lives; on CUDA each rank takes the GPU of its number on this host.

    Raises:
        DataError: this host has fewer GPUs than ranks.
    """
    if not dist.is_torchelastic_launched():
        yield World()
        return
    local_rank = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise DataError(f"rank {local_rank} of this host has no GPU, there are {torch.cuda.device_count()}")
        torch.cuda.set_device(local_rank)
        # What travels beside kernels that fill the GPU would else begin when they end.
        options = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
        dist.init_process_group("nccl", pg_options=options, device_id=torch.device("cuda", local_rank))
    else:
        dist.init_process_group("gloo")
    try:
        groups = [dist.new_group(backend="gloo") for _ in range(2)]
        world = World(dist.get_rank(), dist.get_world_size(), *groups)
        peers = world.gather_objects(Peer(socket.gethostname(), os.getpid()))
        yield replace(world, peers=tuple(peers))
    finally:
        # After an error the others may be gone: to say goodbye to them would hang.
        if sys.exc_info()[0] is None:
            dist.destroy_process_group()
