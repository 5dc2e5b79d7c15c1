"""The training loop: deterministic by seed, stoppable at any step and resumable to the same weights.

With several ranks, each computes its part of every batch. A step's loss is that of the whole batch, the gradients are
summed in one transfer, and so the weights are, up to rounding and dropout, those of one rank with the same batches.

Legend: B requests, C candidates, K tasks, S steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from model.batch import Batch
from model.loss import ranking_loss
from model.progress import Progress
from model.ranker import Ranker
from model.reader import Reader
from model.tokens import TokenRows
from model.training.checkpoint import Checkpoint, Header, restore_rng, rng_group, rng_tensors
from model.training.collection import only_new_objects
from model.training.distributed import World
from model.training.early_stop import EarlyStop
from model.training.lbsl import LoadBalancer
from model.training.loss_history import LossHistory
from model.training.optim import Optimizer, OptimizerSettings
from model.training.schedule import schedule_factor
from model.training.step_window import StepCounts, StepWindow, count_step
from model.training.tracking import Tracker
from model.training.train_config import TrainConfig
from model.training.warm_start import start_from

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunIdentity:
    """What a run's checkpoints are known by.

    Attributes:
        run_hash: of everything that decides the weights.
        vocabulary_hash: of the dataset.
    """

    run_hash: str
    vocabulary_hash: str


@dataclass(frozen=True)
class Companions:
    """What a training may have beside model and reader.

    Attributes:
        world: the ranks.
        balancer: the reader's rule, whose state is saved.
        early_stop: ends the training before its last step.
        trackers: take figures as it goes on.
    """

    world: World = field(default_factory=World)
    balancer: LoadBalancer | None = None
    early_stop: EarlyStop | None = None
    trackers: Sequence[Tracker] = ()


@dataclass(frozen=True)
class _Placed:
    """A batch on the device, with what the step must know of it.

    Attributes:
        batch: itself.
        request_id_B: (B,) on the host.
        counts: of all ranks.
        rows: what its tokens are sums of.
    """

    batch: Batch
    request_id_B: Tensor
    counts: StepCounts
    rows: TokenRows


class Trainer:
    """Owns everything that changes while training: weights, optimizer, reader position, generators, loss history."""

    def __init__(
        self,
        ranker: Ranker,
        reader: Reader,
        config: TrainConfig,
        *,
        identity: RunIdentity,
        device: torch.device,
        companions: Companions | None = None,
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
        self.companions = companions or Companions()
        self._losses = LossHistory(1 + len(ranker.config.heads.tasks), self.companions.world)
        self.window = StepWindow(len(ranker.config.heads.tasks), device)
        settings = OptimizerSettings(config.dense_learning_rate, config.table_learning_rate, config.weight_decay)
        self._optimizer = Optimizer(ranker, settings)

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self._reader.num_batches * self._config.num_epochs

    @property
    def is_done(self) -> bool:
        """Whether the last step was taken, or early stop has ended the run."""
        stop = self.companions.early_stop
        return self.step >= self.total_steps or (stop is not None and stop.stopped)

    def fit(self, until_step: int | None = None, save: Callable[[Checkpoint], None] | None = None) -> None:
        """Trains to `until_step`, or to the end.

        Args:
            until_step: stop after this step.
            save: called with a checkpoint every `checkpoint_every_steps`, on all ranks.

        Raises:
            NonFiniteLossError: a loss is not finite.
        """
        until_step = self.total_steps if until_step is None else until_step
        progress = Progress(logger, "train: step", total=self.total_steps, done=self.step)
        self.ranker.train()
        with only_new_objects():
            while self.step < until_step and not self.is_done:
                self._fit_epoch(until_step, progress, save)

    def _fit_epoch(self, until_step: int, progress: Progress, save: Callable[[Checkpoint], None] | None) -> None:
        """Trains on what is left of the epoch, or to `until_step`."""
        for placed in self._reader.ahead(self._place, self._begin, watch=self.window.timed):
            self._train_on(placed)
            progress.advance(requests=placed.batch.num_requests, tokens=placed.batch.num_tokens)
            self._after_step(progress, save)
            if self.step == until_step or self.is_done:
                break

    def _after_step(self, progress: Progress, save: Callable[[Checkpoint], None] | None) -> None:
        figures: dict[str, float] = {}
        stop = self.companions.early_stop
        if stop and stop.is_due(self.step):
            figures["heldout_ne"] = stop.check(self.ranker, self._device)
            logger.info("train: NE %.4f on held-out requests after step %d", figures["heldout_ne"], self.step)
            self.ranker.train()
        if self.step % self._config.log_every_steps == 0 or self.is_done:
            loss = float(self.losses()[-self._config.log_every_steps :, 0].mean())
            figures |= {"loss": loss} | self.window.figures()
            progress.log(f"loss {loss:.4f}")
        for tracker in self.companions.trackers if figures else ():
            tracker.log(self.step, figures)
        if save and self.step % self._config.checkpoint_every_steps == 0 and not self.is_done:
            save(self.capture())

    def _place(self, batch: Batch) -> _Placed:
        """Counts a batch and sends it to the device, ahead of its step: what it asks there is answered by then."""
        counts = count_step(batch, gamma=self._config.sampling.gamma, world=self.companions.world)
        request_id_B, batch = batch.request_id_B, batch.to(self._device)
        return _Placed(batch, request_id_B, counts, self.ranker.embeddings.rows(batch))

    def _begin(self, placed: _Placed) -> _Placed:
        """Begins the step with what other ranks wait for; the next batch is placed while it travels."""
        factor = schedule_factor(
            self.step, self.total_steps, warmup_steps=self._config.warmup_steps, schedule=self._config.schedule
        )
        self._optimizer.set_schedule(factor)
        return replace(placed, rows=self.ranker.embeddings.begin(placed.rows))

    def _train_on(self, placed: _Placed) -> None:
        world, batch, counts = self.companions.world, placed.batch, placed.counts
        self.num_requests += counts.num_requests
        self.num_candidates += counts.loss.num_candidates
        self.num_tokens += counts.num_tokens
        self._optimizer.zero_grad()
        loss = ranking_loss(
            self.ranker(batch, placed.rows), batch.candidates, self.ranker.config, self.ranker.spec, counts=counts.loss
        )
        figures_X = torch.cat([loss.total.detach()[None], loss.task_K, loss.positives_K])
        figures_X = self._optimizer.update(loss.total, world, figures_X, max_norm=self._config.max_gradient_norm)
        loss_X = figures_X[: 1 + len(loss.task_K)]
        self._losses.add(loss_X, placed.request_id_B)
        self.window.add(counts, task_K=loss_X[1:], positives_K=figures_X[len(loss_X) :])
        self.step += 1

    def losses(self) -> Tensor:
        """(S, 1 + K) float32: total loss, then each task's, of every step so far.

        Raises:
            NonFiniteLossError: a loss is not finite; knows the step and its requests.
        """
        return self._losses.read()

    def capture(self) -> Checkpoint:
        """Everything an exact resume needs; the tensors share memory with the model; called by all ranks alike."""
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
            "optimizer": self._optimizer.dense_state(),
            "adagrad": self._optimizer.table_state(),
            "rng": rng_tensors(self._device),
            "losses": {"losses": self.losses()},
        }
        balancer, stop = self.companions.balancer, self.companions.early_stop
        if balancer:
            state = balancer.global_state(self._reader.rule_state, self.companions.world.sum_host)
            tensors["sampling"] = {"state": torch.from_numpy(state)}
        if stop:
            tensors["early_stop"] = {"history": torch.tensor(stop.history, dtype=torch.float64)}
        return Checkpoint(header, tensors)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Continues from a checkpoint of the same run, whatever number of ranks it had.

        Up to rounding and dropout the next steps are those that its ranks would have taken: the batches, the weights
        and what the optimizers remember are the same. Generators continue where there are as many ranks as before.

        Raises:
            DataError: it belongs to another model or vocabulary.
        """
        header, tensors = checkpoint.header, checkpoint.tensors
        part_of, world = self.ranker.embeddings.tables.part_of, self.companions.world
        tables, sums = (
            {name: part_of(whole) for name, whole in tensors[group].items()} for group in ("tables", "adagrad")
        )
        self.ranker.load_state(dict(tensors["dense"]), tables)
        self._optimizer.load_state(dict(tensors["optimizer"]), sums)
        self._reader.load_state_dict({"epoch": header.epoch, "position": header.position})
        if self.companions.balancer:
            self._reader.rule_state = self.companions.balancer.local_state(tensors["sampling"]["state"].numpy())
        if self.companions.early_stop:
            self.companions.early_stop.history = tensors["early_stop"]["history"].tolist()
        self._losses.restore(tensors["losses"]["losses"])
        self.step = header.step
        self.num_requests, self.num_candidates = header.num_requests, header.num_candidates
        self.num_tokens = header.num_tokens
        if rng_group(world) in tensors:
            restore_rng(tensors[rng_group(world)], self._device)
        else:
            torch.manual_seed(self._config.seed + world.rank + 1_000_003 * self.step)

    def warm_start(self, checkpoint: Checkpoint, *, source: str) -> None:
        """Begins step 0 with the weights and the optimizer of a trained model; see model.warm_start."""
        start_from(checkpoint, self.ranker, self._optimizer, source=source)
