"""Numbers that a GPU has counted, on their way to the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class HostCopy:
    """A copy that has begun.

    Attributes:
        numbers: on the host.
        arrived: when they are there; None where they always were.
    """

    numbers: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, numbers: Tensor) -> Self:
        """Begins to copy integers; the host goes on."""
        if numbers.device.type != "cuda":
            return cls(numbers, None)
        copy = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(numbers.device))
        return cls(copy, arrived)

    def read(self) -> list[int]:
        """The numbers; the host waits until the GPU has come to where the copy began."""
        if self.arrived:
            self.arrived.synchronize()
        return self.numbers.tolist()
