"""Training steps of several ranks: samples/s with SL and with LBSL, step by step, and where the time goes.

Legend: B requests of this rank, G of all ranks.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import torch
from torch import Tensor

from model.batch import Batch
from model.bench.step_batches import BenchShape, bench_batch, bench_config, bench_spec
from model.bench.step_clock import KernelTimes, StepClock, host_times, host_waits, kernel_times, marked_lookup, wait_for
from model.config import ModelConfig
from model.lbsl_simulation import kuairand_27k_lengths
from model.loss import ranking_loss
from model.ranker import Ranker
from model.read_ahead import one_ahead
from model.tokens import TokenRows
from model.training.collection import only_new_objects
from model.training.distributed import World
from model.training.lbsl import LoadBalancer
from model.training.optim import Optimizer, OptimizerSettings
from model.training.stochastic_length import loads
from model.training.train_config import SamplingConfig

logger = logging.getLogger(__name__)

SETTINGS = OptimizerSettings(1e-3, 0.05, 0.01)
REQUESTS_PER_RANK = 32
_WARM_UP, _PROFILED = 8, 3
_GAMMA = 1.5
_SAMPLING = {"alpha": 1.7, "gamma": _GAMMA, "warmup_steps": 4, "recalibrate_every": 4}
KINDS = ("sl", "lbsl", "lbsl_fill")


@dataclass(frozen=True)
class RankStep:
    """A step on one rank.

    Attributes:
        rank, step: from 0.
        loss: of the batch of all ranks.
        tokens: of this rank.
        load_share: this rank's load over the mean of the ranks'.
        ms: of the step.
    """

    rank: int
    step: int
    loss: float
    tokens: int
    load_share: float
    ms: float


@dataclass(frozen=True)
class RanksFigures:
    """Steps of all ranks with one way to cut histories.

    Attributes:
        samples_per_second: requests of all ranks.
        step_ms: mean of the steps, by the wall.
        tokens_per_rank: mean of the steps.
        load_imbalance: largest load of a rank over the mean, mean of the steps.
        part_ms: of the first rank's step, in steps of their own after those that were counted.
        host_waits: lines that make the host wait for the GPU in a step, and how often.
        kernels, host: the first rank's longest on the GPU and functions on its host, in steps of their own.
        log: every step of every rank.
    """

    samples_per_second: float
    step_ms: float
    tokens_per_rank: float
    load_imbalance: float
    part_ms: dict[str, float]
    host_waits: dict[str, int]
    kernels: KernelTimes | None
    host: list[tuple[str, float, float]]
    log: list[RankStep]


def train_steps(
    ranker: Ranker, optimizer: Optimizer, batches: Iterable[Batch], world: World, clock: StepClock | None = None
) -> Iterator[Tensor]:
    """A step on each batch of this rank, as the trainer's; yields (1,) losses, summed over ranks.

    As there, the rows of a batch are asked for when the step in front of it begins. `clock` has the parts marked.
    """
    embeddings = ranker.embeddings

    def begin(planned: tuple[Batch, TokenRows]) -> tuple[Batch, TokenRows]:
        if clock:
            clock.begin()
        return planned[0], embeddings.begin(planned[1])

    planned = ((batch, embeddings.rows(batch)) for batch in batches)
    with only_new_objects():
        for batch, rows in one_ahead(planned, begin):
            if clock:
                clock.mark("begin, rows of the next")
            yield _train_step(ranker, optimizer, batch, rows, world, clock)


def _train_step(
    ranker: Ranker, optimizer: Optimizer, batch: Batch, rows: TokenRows, world: World, clock: StepClock | None
) -> Tensor:
    def mark(part: str) -> None:
        if clock:
            clock.mark(part)

    optimizer.zero_grad()
    loss = ranking_loss(ranker(batch, rows), batch.candidates, ranker.config, ranker.spec)
    mark("layers forward")
    summed = optimizer.update(loss.total, world, loss.total.detach()[None], max_norm=1.0)
    mark("tables backward, dense update")
    return summed


def default_config(shape: BenchShape, device: torch.device) -> ModelConfig:
    """One stream, as the device computes it best."""
    impl, compute = ("triton", "bf16") if device.type == "cuda" else ("reference", "fp32")
    return bench_config(shape, num_streams=1, impl=impl, compute=compute, gemm="bf16")


def draw_batches(kind: str, shape: BenchShape, world: World, *, device: torch.device, steps: int) -> list[Batch]:
    """This rank's batches, of KuaiRand-27K-like histories cut by `kind`, one of KINDS."""
    balancer = LoadBalancer(
        SamplingConfig.model_validate(
            _SAMPLING | {"kind": kind.removesuffix("_fill"), "exact_fill": kind.endswith("_fill")}
        ),
        (shape.max_length,),
        seed=1,
        num_ranks=world.size,
        sum_over_ranks=world.sum_host,
    )
    spec, rng, num_requests = bench_spec(shape), np.random.default_rng(3), REQUESTS_PER_RANK * world.size
    batches = []
    for step in range(steps):
        length_G = np.minimum(kuairand_27k_lengths(rng, (1, num_requests))[0], shape.max_length)
        part = world.part(num_requests)
        [kept_B] = balancer.decide((length_G[part],), begin=part.start, num_requests=num_requests)
        lengths = [kept_B.tolist(), [0] * len(kept_B)]
        seed = step * world.size + world.rank
        batches.append(bench_batch(spec, lengths, shape.num_candidates, device=device, seed=seed))
    return batches


def ranks_figures(kind: str, shape: BenchShape, world: World, *, device: torch.device, steps: int) -> RanksFigures:
    """Steps of all ranks; called by all alike."""
    torch.manual_seed(0)
    ranker = Ranker(default_config(shape, device), bench_spec(shape), device=device, world=world).train()
    optimizer = Optimizer(ranker, SETTINGS)
    split = max(steps // 3, 1)
    batches = draw_batches(kind, shape, world, device=device, steps=_WARM_UP + steps + split)
    counted, parted = batches[_WARM_UP : _WARM_UP + steps], batches[_WARM_UP + steps :]
    # The warm-up of LBSL and that of the kernels, which Triton compiles apart for token counts that 16 divides.
    even = [[shape.max_length // 4] * REQUESTS_PER_RANK, [0] * REQUESTS_PER_RANK]
    warm_up = [bench_batch(ranker.spec, even, shape.num_candidates, device=device), *batches[:_WARM_UP]]
    list(train_steps(ranker, optimizer, warm_up, world))
    clock = StepClock(device)
    wait_for(device)
    world.barrier()
    started = time.perf_counter()
    losses = list(train_steps(ranker, optimizer, counted, world, clock))
    wait_for(device)
    world.barrier()
    seconds = time.perf_counter() - started
    log = _log(counted, losses, clock.step_ms(), world)
    parts = StepClock(device)
    with marked_lookup(ranker, parts):
        list(train_steps(ranker, optimizer, parted, world, parts))
    watched = train_steps(ranker, optimizer, repeat(parted[0]), world)
    next(watched)
    waits, kernels = _watched(lambda: next(watched), device)
    for row in log[:: max(len(log) // 12 // world.size * world.size, world.size)]:
        _say(kind, [other for other in log if other.step == row.step])
    return RanksFigures(
        samples_per_second=steps * REQUESTS_PER_RANK * world.size / seconds,
        step_ms=1000 * seconds / steps,
        tokens_per_rank=float(np.mean([row.tokens for row in log])),
        load_imbalance=float(np.mean([max(r.load_share for r in log if r.step == step) for step in range(steps)])),
        part_ms=parts.part_ms(),
        host_waits=waits,
        kernels=kernels,
        host=host_times(lambda: next(watched), device, steps=_PROFILED),
        log=log,
    )


def _watched(run: Callable[[], object], device: torch.device) -> tuple[dict[str, int], KernelTimes | None]:
    """What holds a GPU's host up in a step, and what the GPU does; on a CPU nothing of the kind."""
    if device.type != "cuda":
        return {}, None
    return host_waits(run), kernel_times(run, device, steps=_PROFILED)


def _log(batches: Sequence[Batch], losses: Sequence[Tensor], step_ms: Sequence[float], world: World) -> list[RankStep]:
    """The steps of all ranks, by step and rank."""
    load_S = np.array([loads(b.streams[0].offsets_B1.diff().cpu().numpy(), _GAMMA).sum() for b in batches])
    share_S = load_S / world.sum_host(load_S) * world.size
    mine = [
        RankStep(world.rank, step, float(loss) / world.size, batch.num_tokens, float(share), ms)
        for step, (batch, loss, share, ms) in enumerate(zip(batches, losses, share_S, step_ms, strict=True))
    ]
    rows = [row for part in world.gather_objects(mine) for row in part]
    return sorted(rows, key=lambda row: (row.step, row.rank))


def _say(kind: str, rows: Sequence[RankStep]) -> None:
    parts = ", ".join(f"rank {row.rank}: {row.tokens} tokens, {row.ms:.1f} ms" for row in rows)
    imbalance = max(row.load_share for row in rows)
    logger.info("%s, step %d: loss %.4f, imbalance %.3f; %s", kind, rows[0].step, rows[0].loss, imbalance, parts)
