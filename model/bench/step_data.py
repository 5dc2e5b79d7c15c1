"""How long training waits for its reader: the trainer itself, on a dataset of long histories."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from features.dataset import StreamsDataset, open_dataset
from model.batch import Batch
from model.bench.step_batches import BenchShape
from model.bench.step_clock import wait_for
from model.config import ModelConfig
from model.reader import Reader
from model.study.world import FEATURES, SESSION_EVENTS, WorldSettings, write_world
from model.train import build_trainer
from model.training.sampler import TRAIN
from model.training.step_window import StepWindow
from model.training.train_config import TrainConfig

# Of four, three in four requests have a history that fills the model.
_HISTORIES_A_USER = 4
_NUM_USERS = 12
# So long that kernels are compiled for every kind of length before it ends.
_WARM_UP = 40
_GATHERED = 20


@dataclass(frozen=True)
class DataWait:
    """Waiting for the reader.

    Attributes:
        steps: that were counted, after a warm-up.
        tokens: of a step, in the mean.
        first_wait_ms, first_step_ms: of the first step of all, which maps files, locks memory and compiles kernels.
        step_ms, median_step_ms, wait_ms: of the counted steps.
        max_wait_ms: the longest of them.
        data_wait_share: of the counted steps' time.
        gather_ms: of a batch by the reader alone, into memory that is not page-locked; median.
    """

    steps: int
    tokens: float
    first_wait_ms: float
    first_step_ms: float
    step_ms: float
    median_step_ms: float
    wait_ms: float
    max_wait_ms: float
    data_wait_share: float
    gather_ms: float


class _WaitWindow(StepWindow):
    """Remembers when each batch was asked for and when it came."""

    def __init__(self, num_tasks: int, device: torch.device) -> None:
        super().__init__(num_tasks, device)
        self.asked: list[float] = []
        self.came: list[float] = []
        self.tokens: list[int] = []

    def timed(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """The same batches."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            self.asked.append(asked)
            self.came.append(time.perf_counter())
            self.tokens.append(batch.num_tokens)
            yield batch


def bench_train_config(shape: BenchShape, device: torch.device, *, steps: int) -> TrainConfig:
    """Settings of the trainer that change nothing of its speed."""
    return TrainConfig.model_validate(
        {
            "seed": 7,
            "device": device.type,
            "num_threads": 1,
            "num_epochs": 1,
            "batch_size": shape.num_requests,
            "num_workers": 0,
            "dense_learning_rate": 1e-3,
            "table_learning_rate": 0.05,
            "weight_decay": 0.01,
            "schedule": "constant",
            "warmup_steps": 0,
            "max_gradient_norm": 1.0,
            "sampling": {
                "kind": "none",
                "alpha": 1.7,
                "gamma": 1.5,
                "warmup_steps": 4,
                "recalibrate_every": 4,
                "exact_fill": False,
            },
            "early_stop": None,
            "warm_start": None,
            "tracking": [],
            "checkpoint_every_steps": 10**9,
            "log_every_steps": steps,
        }
    )


def world_config(config: ModelConfig) -> ModelConfig:
    """The model for the actions of model.study_world, which tells nothing else of a user."""
    heads = config.heads.model_copy(update={"tasks": FEATURES.actions})
    return config.model_copy(update={"contextual": (), "heads": heads})


def long_world(shape: BenchShape) -> WorldSettings:
    """Users of four histories' length each."""
    events = -(-shape.max_length * _HISTORIES_A_USER // SESSION_EVENTS) * SESSION_EVENTS
    return WorldSettings(num_users=_NUM_USERS, num_events=events)


def data_wait(
    config: ModelConfig, shape: BenchShape, device: torch.device, *, steps: int, warm_up: int = _WARM_UP
) -> DataWait:
    """Trains `steps` steps after a warm-up, on mapped shards whose histories mostly fill the model."""
    total = warm_up + steps
    train_config = bench_train_config(shape, device, steps=total)
    with tempfile.TemporaryDirectory() as directory:
        write_world(Path(directory) / "streams", long_world(shape))
        dataset = open_dataset(Path(directory) / "streams")
        trainer, _ = build_trainer(dataset, train_config, world_config(config))
        window = _WaitWindow(len(FEATURES.actions), device)
        trainer.window = window
        trainer.fit(until_step=total)
        wait_for(device)
        ended = time.perf_counter()
        gather_ms = _gather_ms(dataset, shape)
    # A batch is asked for before the step of the one in front of it.
    waits, begun = (np.array(window.came) - np.array(window.asked))[:total], np.array(window.asked[1:total])
    seconds = ended - begun[warm_up]
    return DataWait(
        steps=steps,
        tokens=float(np.mean(window.tokens[warm_up:total])),
        first_wait_ms=1000 * float(waits[0]),
        first_step_ms=1000 * float(begun[1] - begun[0]),
        step_ms=1000 * seconds / steps,
        median_step_ms=1000 * float(np.median(np.diff(begun[warm_up:]))),
        wait_ms=1000 * float(waits[warm_up:].mean()),
        max_wait_ms=1000 * float(waits[warm_up:].max()),
        data_wait_share=float(waits[warm_up:].sum()) / seconds,
        gather_ms=gather_ms,
    )


def _gather_ms(dataset: StreamsDataset, shape: BenchShape) -> float:
    """Median time of a batch in this thread, after the first."""
    lengths = tuple(shape.max_length if stream == "consumption" else 0 for stream in dataset.manifest.spec.streams)
    batches = iter(Reader(dataset, split=TRAIN, batch_size=shape.num_requests, max_lengths=lengths, shuffle_seed=11))
    next(batches)
    times = []
    for _ in range(_GATHERED):
        started = time.perf_counter()
        next(batches)
        times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times))
