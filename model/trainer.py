"""The training loop: deterministic by seed, stoppable at any step and resumable to the same weights.

Legend: B requests, C candidates, K tasks, S steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from features.errors import DataError
from model.batch import Batch
from model.checkpoint import Checkpoint, Header, restore_rng, rng_tensors
from model.loss import ranking_loss
from model.optim import Optimizer, OptimizerSettings
from model.progress import Progress
from model.ranker import Ranker
from model.reader import Reader
from model.train_config import TrainConfig

logger = logging.getLogger(__name__)
_NAMED_REQUESTS = 8


def schedule_factor(
    step: int, total_steps: int, *, warmup_steps: int, schedule: Literal["constant", "linear", "cosine"]
) -> float:
    """What the learning rates are multiplied with at a step (from 0): a linear warm-up, then the schedule."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    if schedule == "linear":
        return 1 - progress
    if schedule == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1.0


@dataclass(frozen=True)
class RunIdentity:
    """What a run's checkpoints are known by.

    Attributes:
        run_hash: of everything that decides the weights.
        vocabulary_hash: of the dataset.
    """

    run_hash: str
    vocabulary_hash: str


class LossHistory:
    """The loss of every step: total, then one per task. Reading waits for the device, so it is done now and then."""

    def __init__(self, num_columns: int) -> None:
        self._known_SX = torch.empty(0, num_columns)
        self._pending: list[tuple[Tensor, Tensor]] = []

    def add(self, loss_X: Tensor, request_id_B: Tensor) -> None:
        """Adds a step's detached losses and the requests that gave them."""
        self._pending.append((loss_X, request_id_B))

    def read(self) -> Tensor:
        """(S, 1 + K) float32 losses of all steps.

        Raises:
            DataError: a loss is not finite; names the step and its requests.
        """
        if self._pending:
            fresh_SX = torch.stack([loss_X for loss_X, _ in self._pending]).cpu()
            broken_S = ~fresh_SX.isfinite().all(dim=1)
            if broken_S.any():
                first = int(broken_S.int().argmax())
                _refuse_loss(self._known_SX.shape[0] + first + 1, self._pending[first][1].tolist())
            self._known_SX = torch.cat([self._known_SX, fresh_SX])
            self._pending = []
        return self._known_SX

    def restore(self, known_SX: Tensor) -> None:
        """Continues from saved losses."""
        self._known_SX, self._pending = known_SX, []


def _refuse_loss(step: int, request_ids: list[int]) -> None:
    logger.error("requests of step %d: %s", step, ", ".join(map(str, request_ids)))
    named = ", ".join(map(str, request_ids[:_NAMED_REQUESTS]))
    more = len(request_ids) - _NAMED_REQUESTS
    rest = f" and {more} more" if more > 0 else ""
    raise DataError(
        f"train: the loss of step {step} is not finite; its requests: {named}{rest}. "
        "Lower the learning rates or look at these requests (request_id = file number << 40 | row)"
    )


class Trainer:
    """Owns everything that changes while training: weights, optimizer, reader position, generators, loss history."""

    def __init__(
        self, ranker: Ranker, reader: Reader, config: TrainConfig, *, identity: RunIdentity, device: torch.device
    ) -> None:
        self.ranker = ranker
        self.step = 0
        self.num_requests = 0
        self.num_candidates = 0
        self.num_tokens = 0
        self._reader = reader
        self._config = config
        self._identity = identity
        self._device = device
        self._losses = LossHistory(1 + len(ranker.config.heads.tasks))
        settings = OptimizerSettings(config.dense_learning_rate, config.table_learning_rate, config.weight_decay)
        self._optimizer = Optimizer(ranker, settings)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self._reader.num_batches * self._config.num_epochs

    def fit(self, until_step: int | None = None, save: Callable[[Checkpoint], None] | None = None) -> None:
        """Trains to `until_step`, or to the end.

        Args:
            until_step: stop after this step.
            save: called with a checkpoint every `checkpoint_every_steps`.

        Raises:
            DataError: a loss is not finite.
        """
        until_step = self.total_steps if until_step is None else until_step
        progress = Progress(logger, "train: step", total=self.total_steps, done=self.step)
        self.ranker.train()
        while self.step < until_step:
            for batch in self._reader:
                self._train_on(batch)
                progress.advance(requests=batch.num_requests, tokens=_num_tokens(batch))
                if self.step % self._config.log_every_steps == 0 or self.step == self.total_steps:
                    progress.log(f"loss {self.losses()[-self._config.log_every_steps :, 0].mean():.4f}")
                if save and self.step % self._config.checkpoint_every_steps == 0 and self.step < self.total_steps:
                    save(self.capture())
                if self.step == until_step:
                    break

    def _train_on(self, batch: Batch) -> None:
        request_id_B = batch.request_id_B
        self.num_requests += batch.num_requests
        self.num_candidates += batch.candidates.action_mask_C.numel()
        self.num_tokens += _num_tokens(batch)
        batch = (batch.pin_memory() if self._device.type == "cuda" else batch).to(self._device)
        factor = schedule_factor(
            self.step, self.total_steps, warmup_steps=self._config.warmup_steps, schedule=self._config.schedule
        )
        self._optimizer.set_schedule(factor)
        self._optimizer.zero_grad()
        loss = ranking_loss(self.ranker(batch), batch.candidates, self.ranker.config, self.ranker.spec)
        loss.total.backward()
        self._optimizer.clip(self._config.max_gradient_norm)
        self._optimizer.step()
        self._losses.add(torch.cat([loss.total.detach()[None], loss.task_K]), request_id_B)
        self.step += 1

    def losses(self) -> Tensor:
        """(S, 1 + K) float32: total loss, then each task's, of every step so far.

        Raises:
            DataError: a loss is not finite; names the step and its requests.
        """
        return self._losses.read()

    def capture(self) -> Checkpoint:
        """Everything an exact resume needs; the tensors share memory with the model."""
        header = Header(
            run_hash=self._identity.run_hash,
            step=self.step,
            epoch=self._reader.state_dict()["epoch"],
            position=self._reader.state_dict()["position"],
            num_requests=self.num_requests,
            num_candidates=self.num_candidates,
            num_tokens=self.num_tokens,
            seed=self._config.seed,
            spec=self.ranker.spec,
            model=self.ranker.config,
            vocabulary_hash=self._identity.vocabulary_hash,
        )
        tensors = {
            "dense": self.ranker.dense_state(),
            "tables": self.ranker.table_state(),
            "optimizer": self._optimizer.state_dict(),
            "rng": rng_tensors(self._device),
            "losses": {"losses": self.losses()},
        }
        return Checkpoint(header, tensors)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continues from a checkpoint of the same run.

        Raises:
            DataError: it belongs to another model or vocabulary.
        """
        header, tensors = checkpoint.header, checkpoint.tensors
        self.ranker.load_state(dict(tensors["dense"]), dict(tensors["tables"]))
        self._optimizer.load_state_dict(dict(tensors["optimizer"]))
        self._reader.load_state_dict({"epoch": header.epoch, "position": header.position})
        self._losses.restore(tensors["losses"]["losses"])
        self.step = header.step
        self.num_requests, self.num_candidates = header.num_requests, header.num_candidates
        self.num_tokens = header.num_tokens
        restore_rng(tensors["rng"], self._device)


def _num_tokens(batch: Batch) -> int:
    histories = sum(stream.timestamp_ms_T.numel() for stream in batch.streams)
    return histories + batch.candidates.action_mask_C.numel()
