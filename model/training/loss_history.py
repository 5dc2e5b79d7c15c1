"""The losses of a run, read from the device now and then, and what happens when one is not finite.

Legend: B requests, S steps, K tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from features.errors import DataError
from features.files import atomic_file
from model.training.distributed import World


class NonFiniteLossError(DataError):
    """A step's loss is not finite; knows the step and the requests of all ranks."""

    def __init__(self, step: int, request_ids: Sequence[int]) -> None:
        super().__init__(f"train: the loss of step {step} is not finite")
        self.step = step
        self.request_ids = tuple(request_ids)

    def saved(self, directory: Path) -> DataError:
        """Writes the requests, one a line, and says where."""
        path = directory / f"not-finite-step-{self.step}.txt"
        with atomic_file(path) as temporary:
            temporary.write_text("".join(f"{request_id}\n" for request_id in self.request_ids))
        return DataError(
            f"{self}; its {len(self.request_ids)} requests are listed in {path} "
            "(request_id = file number << 40 | row). Lower the learning rates or look at these requests"
        )


class LossHistory:
    """The loss of every step: total, then one per task. Reading waits for the device, so it is done now and then."""

    def __init__(self, num_columns: int, world: World) -> None:
        self._known_SX = torch.empty(0, num_columns)
        self._pending: list[tuple[Tensor, Tensor]] = []
        self._world = world

    def add(self, loss_X: Tensor, request_id_B: Tensor) -> None:
        """Adds a step's detached losses, those of all ranks together, and the requests of this rank."""
        self._pending.append((loss_X, request_id_B))

    def read(self) -> Tensor:
        """(S, 1 + K) float32 losses of all steps.

        Raises:
            NonFiniteLossError: a loss is not finite, on all ranks alike.
        """
        if self._pending:
            fresh_SX = torch.stack([loss_X for loss_X, _ in self._pending]).cpu()
            broken_S = ~fresh_SX.isfinite().all(dim=1)
            if broken_S.any():
                first = int(broken_S.int().argmax())
                parts = self._world.gather_objects(self._pending[first][1].tolist())
                ids = [request_id for part in parts for request_id in part]
                raise NonFiniteLossError(self._known_SX.shape[0] + first + 1, ids)
            self._known_SX = torch.cat([self._known_SX, fresh_SX])
            self._pending = []
        return self._known_SX

    def restore(self, known_SX: Tensor) -> None:
        """Continues from saved losses."""
        self._known_SX, self._pending = known_SX, []
