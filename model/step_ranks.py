"""The parts of the step benchmark in which ranks and the reader matter.

Legend: B requests of this rank, G of all ranks.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from features.dataset import open_dataset
from model.batch import Batch
from model.config import ModelConfig
from model.distributed import World
from model.lbsl import LoadBalancer
from model.lbsl_simulation import kuairand_27k_lengths
from model.loss import ranking_loss
from model.optim import Optimizer, OptimizerSettings
from model.ranker import Ranker
from model.step_batches import BenchShape, bench_batch, bench_config, bench_spec
from model.step_window import StepWindow
from model.study_world import FEATURES, WorldSettings, write_world
from model.train import build_trainer
from model.train_config import SamplingConfig, TrainConfig

SETTINGS = OptimizerSettings(1e-3, 0.05, 0.01)
REQUESTS_PER_RANK = 32
_WARM_UP = 5
_SAMPLING = {"alpha": 1.7, "gamma": 1.5, "warmup_steps": 4, "recalibrate_every": 4, "exact_fill": False}


def train_step(ranker: Ranker, optimizer: Optimizer, batch: Batch, world: World) -> None:
    """One step, as the trainer's."""
    optimizer.zero_grad()
    loss = ranking_loss(ranker(batch), batch.candidates, ranker.config, ranker.spec)
    loss.total.backward()
    optimizer.sum_over_ranks(world, loss.total.detach()[None])
    optimizer.clip(1.0)
    optimizer.step()


def wait_for(device: torch.device) -> None:
    """Waits until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def default_config(shape: BenchShape, device: torch.device) -> ModelConfig:
    """One stream, as the device computes it best."""
    impl, compute = ("triton", "bf16") if device.type == "cuda" else ("reference", "fp32")
    return bench_config(shape, num_streams=1, impl=impl, compute=compute, gemm="bf16")


def data_wait(shape: BenchShape, device: torch.device, *, steps: int) -> dict[str, float]:
    """Share of the time that training waits for the real reader, over a dataset of long histories."""
    config = default_config(shape, device)
    config = config.model_copy(
        update={
            "contextual": (),
            "heads": config.heads.model_copy(update={"tasks": FEATURES.actions}),
        }
    )
    train_config = TrainConfig.model_validate(
        {
            "seed": 7,
            "device": device.type,
            "num_threads": 1,
            "num_epochs": 1,
            "batch_size": 2 * shape.num_requests,
            "num_workers": 0,
            "dense_learning_rate": 1e-3,
            "table_learning_rate": 0.05,
            "weight_decay": 0.01,
            "schedule": "constant",
            "warmup_steps": 0,
            "max_gradient_norm": 1.0,
            "sampling": _SAMPLING | {"kind": "none"},
            "early_stop": None,
            "warm_start": None,
            "tracking": [],
            "checkpoint_every_steps": 10**9,
            "log_every_steps": steps,
        }
    )
    with tempfile.TemporaryDirectory() as directory:
        events = -(-shape.max_length * 9 // 8 // 32) * 32
        write_world(Path(directory) / "streams", WorldSettings(num_users=24, num_events=events))
        trainer, _ = build_trainer(open_dataset(Path(directory) / "streams"), train_config, config)
        trainer.fit(until_step=_WARM_UP)
        tracker = _LastFigures()
        trainer.companions = dataclasses.replace(trainer.companions, trackers=(tracker,))
        trainer.window = StepWindow(len(config.heads.tasks), device)
        trainer.fit(until_step=steps)
    return tracker.figures


class _LastFigures:
    """A tracker that remembers the last point."""

    def __init__(self) -> None:
        self.figures: dict[str, float] = {}

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Replaces the point."""
        self.figures = dict(figures)

    def close(self) -> None:
        """Nothing is left."""


def samples_per_second(kind: str, shape: BenchShape, world: World, *, device: torch.device, steps: int) -> float:
    """Requests of all ranks per second, with KuaiRand-27K-like histories cut by `kind`."""
    torch.manual_seed(0)
    config = default_config(shape, device)
    spec = bench_spec(shape)
    ranker = Ranker(config, spec, device=device, world=world).train()
    optimizer = Optimizer(ranker, SETTINGS)
    balancer = LoadBalancer(
        SamplingConfig.model_validate(_SAMPLING | {"kind": kind}),
        (shape.max_length,),
        seed=1,
        num_ranks=world.size,
        sum_over_ranks=world.sum_host,
    )
    rng, num_requests = np.random.default_rng(3), REQUESTS_PER_RANK * world.size
    batches = []
    for step in range(steps + _WARM_UP):
        length_G = np.minimum(kuairand_27k_lengths(rng, (1, num_requests))[0], shape.max_length)
        part = world.part(num_requests)
        [kept_B] = balancer.decide((length_G[part],), begin=part.start, num_requests=num_requests)
        lengths = [kept_B.tolist(), [0] * len(kept_B)]
        batches.append(bench_batch(spec, lengths, shape.num_candidates, device=device, seed=step))
    # LBSL's warm-up, and that of the kernels, come first
    for batch in batches[:_WARM_UP]:
        train_step(ranker, optimizer, batch, world)
    wait_for(device)
    world.barrier()
    started = time.perf_counter()
    for batch in batches[_WARM_UP:]:
        train_step(ranker, optimizer, batch, world)
    wait_for(device)
    world.barrier()
    return steps * num_requests / (time.perf_counter() - started)
