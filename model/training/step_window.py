"""What the steps since the last log line were like: sizes, balance, waiting, NE.

Legend: B requests, K tasks, R ranks.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.batch import Batch
from model.loss import LossCounts, entropy
from model.training.distributed import World

_GIB = 1 << 30


@dataclass(frozen=True)
class StepCounts:
    """Sizes of a step on all ranks.

    Attributes:
        num_requests, num_tokens: of the whole batch.
        loss: what the loss divides by.
        load_imbalance: largest load of a rank over the mean; 1 where there is no load.
    """

    num_requests: int
    num_tokens: int
    loss: LossCounts
    load_imbalance: float


def count_step(batch: Batch, *, gamma: float, world: World) -> StepCounts:
    """Counts a batch before it goes to the device; with several ranks they tell each other."""
    load = sum(float((stream.offsets_B1.diff().double() ** gamma).sum()) for stream in batch.streams)
    num_known = int((~batch.candidates.watch_ratio_C.isnan()).sum())
    mine = np.array([batch.num_requests, batch.num_tokens, batch.num_candidates, num_known, load])
    rows_RX = world.gather_host(mine)
    requests, tokens, candidates, known, total_load = rows_RX.sum(axis=0).tolist()
    imbalance = float(rows_RX[:, 4].max()) * world.size / total_load if total_load else 1.0
    return StepCounts(int(requests), int(tokens), LossCounts(int(candidates), int(known)), imbalance)


class StepWindow:
    """Sums over steps; `figures` gives the means and begins anew."""

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        self._num_tasks, self._device = num_tasks, device
        self._clear()

    def _clear(self) -> None:
        self._started = time.monotonic()
        self._waited = 0.0
        self._tokens = self._candidates = self._steps = 0
        self._imbalance = 0.0
        self._entropy_K = torch.zeros(self._num_tasks, dtype=torch.float64, device=self._device)
        self._positives_K = torch.zeros(self._num_tasks, dtype=torch.float64, device=self._device)

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches; the time that each takes to come is waiting."""
        while True:
            started = time.monotonic()
            batch = next(batches, None)
            self._waited += time.monotonic() - started
            if batch is None:
                return
            yield batch

    def add(self, counts: StepCounts, *, task_K: Tensor, positives_K: Tensor) -> None:
        """Adds a step of all ranks: its mean cross-entropy per task and how many candidates had the action."""
        self._steps += 1
        self._tokens += counts.num_tokens
        self._candidates += counts.loss.num_candidates
        self._imbalance += counts.load_imbalance
        self._entropy_K += task_K * counts.loss.num_candidates
        self._positives_K += positives_K

    def figures(self) -> dict[str, float]:
        """Means since the last call, by the names of model.tracking; what is undefined is left out."""
        seconds = max(time.monotonic() - self._started, 1e-9)
        found = {
            "tokens_per_second": self._tokens / seconds,
            "load_imbalance": self._imbalance / max(self._steps, 1),
            "data_wait_share": self._waited / seconds,
        }
        if self._candidates:
            base_K = entropy(self._positives_K / self._candidates)
            ne_K = torch.where(base_K > 0, self._entropy_K / self._candidates / base_K, torch.nan)
            if not bool(ne_K.isnan().all()):
                found["ne"] = float(ne_K.nanmean())
        if self._device.type == "cuda":
            found["gpu_memory_gib"] = torch.cuda.max_memory_allocated(self._device) / _GIB
            torch.cuda.reset_peak_memory_stats(self._device)
        self._clear()
        return found
