"""One cell of a study: a model trained once with one seed and measured on the evaluation window, kept as a JSON file.

A cell's file is named by the hash of all that decides its figures, so a finished one is never trained again, and cells
that several figures share are trained once.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from features.dataset import StreamsDataset
from features.errors import DataError
from features.files import read_json, write_json
from model.config import ModelConfig
from model.evaluation import measure, score_candidates
from model.flops import Flops, mean_flops
from model.reader import Reader
from model.stage import device_of, max_lengths
from model.train import build_trainer, run_hash
from model.training.sampler import EVALUATION, TRAIN
from model.training.train_config import EvaluateConfig, TrainConfig

_SAMPLED_REQUESTS = 2000
_WHOLE = 1 << 30


@dataclass(frozen=True)
class CellResult:
    """The figures of a finished cell.

    Attributes:
        cell: hash of what decides them.
        kind: sequence encoder.
        seed: of the weights, the shuffle and dropout.
        num_layers, max_length: per stream.
        training_flops: per candidate of the training days.
        inference_flops: per candidate of the evaluation window.
        dense_parameters: trained by the dense optimizer.
        steps, seconds: of training.
        device: that trained it.
        c_ne, e_ne: mean NE of the two groups of tasks.
        ne, auc: per task; None where undefined.
        losses: mean training loss of every train.log_every_steps steps, the last ones that are fewer left out.
    """

    cell: str
    kind: str
    seed: int
    num_layers: dict[str, int]
    max_length: dict[str, int]
    training_flops: float
    inference_flops: float
    dense_parameters: int
    steps: int
    seconds: float
    device: str
    c_ne: float | None
    e_ne: float | None
    ne: dict[str, float | None]
    auc: dict[str, float | None]
    losses: Sequence[float] = ()


@dataclass(frozen=True)
class CandidateFlops:
    """Operations per candidate: training on the training days, scoring the evaluation window."""

    training: float
    inference: float


@dataclass(frozen=True)
class LengthSample:
    """Whole histories' lengths per stream, and candidates, of an evenly spaced sample of a split's requests."""

    lengths: dict[str, np.ndarray]
    candidates: list[int]

    @property
    def mean_candidates(self) -> float:
        """Per request."""
        return sum(self.candidates) / len(self.candidates)

    def flops(self, config: ModelConfig, alpha: float | None) -> Flops:
        """Operations per request of a model that takes the newest max_length events."""
        taken = {
            name: np.minimum(self.lengths[name], stream.max_length).tolist() for name, stream in config.streams.items()
        }
        return mean_flops(config, taken, self.candidates, alpha=alpha)


def sample_lengths(dataset: StreamsDataset, split: int) -> LengthSample:
    """Lengths of at most 2,000 requests.

    Raises:
        DataError: the split has none.
    """
    streams = dataset.manifest.spec.streams
    reader = Reader(dataset, split=split, batch_size=1, max_lengths=(_WHOLE,) * len(streams))
    if reader.num_requests == 0:
        raise DataError(
            f"{dataset.path}: no requests in the {'evaluation' if split == EVALUATION else 'training'} days"
        )
    batch = reader.sample(_SAMPLED_REQUESTS)
    return LengthSample(
        {name: stream.offsets_B1.diff().numpy() for name, stream in zip(streams, batch.streams, strict=True)},
        batch.candidates.offsets_B1.diff().tolist(),
    )


@dataclass(frozen=True)
class Bench:
    """What all cells of a study share."""

    dataset: StreamsDataset
    train: TrainConfig
    evaluate: EvaluateConfig

    def cell_of(self, config: ModelConfig, seed: int) -> str:
        """Name of a cell."""
        evaluated = self.evaluate.model_dump_json(include={"groups", "device"})
        decisive = f"{run_hash(self.dataset, self._seeded(seed), config)} {evaluated}"
        return hashlib.sha256(decisive.encode()).hexdigest()[:16]

    def _seeded(self, seed: int) -> TrainConfig:
        return self.train.model_copy(update={"seed": seed})

    def flops(self, config: ModelConfig) -> CandidateFlops:
        """Operations per candidate."""
        sampling = self.train.sampling
        alpha = None if sampling.kind == "none" else sampling.alpha
        return CandidateFlops(
            training=self._training_sample.flops(config, alpha).training / self._training_sample.mean_candidates,
            inference=self._evaluation_sample.flops(config, None).inference / self._evaluation_sample.mean_candidates,
        )

    @cached_property
    def _training_sample(self) -> LengthSample:
        return sample_lengths(self.dataset, TRAIN)

    @cached_property
    def _evaluation_sample(self) -> LengthSample:
        return sample_lengths(self.dataset, EVALUATION)

    def run(self, config: ModelConfig, seed: int) -> CellResult:
        """Trains and measures.

        Raises:
            DataError: the settings do not fit the dataset, or a loss is not finite.
        """
        torch.set_num_threads(self.train.num_threads)
        device = device_of(self.train.device, "train.device")
        tasks = config.heads.tasks
        started = time.monotonic()
        trainer, _ = build_trainer(self.dataset, self._seeded(seed), config)
        trainer.fit()
        seconds = time.monotonic() - started
        lengths = max_lengths(config, self.dataset.manifest.spec)
        reader = Reader(self.dataset, split=EVALUATION, batch_size=self.evaluate.batch_size, max_lengths=lengths)
        scores = score_candidates(trainer.ranker, reader, device)
        evaluation = measure(
            scores,
            [None] * len(tasks),
            tasks,
            groups=self.evaluate.groups,
            cut_ms=self.dataset.manifest.cut_ms,
        )
        flops = self.flops(config)
        return CellResult(
            cell=self.cell_of(config, seed),
            kind=config.kind,
            seed=seed,
            num_layers={name: stream.num_layers for name, stream in config.streams.items()},
            max_length={name: stream.max_length for name, stream in config.streams.items()},
            training_flops=flops.training,
            inference_flops=flops.inference,
            dense_parameters=sum(value.numel() for value in trainer.ranker.dense_parameters().values()),
            steps=trainer.step,
            seconds=round(seconds, 1),
            device=_device_name(device),
            c_ne=evaluation.c_ne,
            e_ne=evaluation.e_ne,
            ne={task: result.ne for task, result in evaluation.tasks.items()},
            auc={task: result.auc for task, result in evaluation.tasks.items()},
            losses=window_means(trainer.losses()[:, 0], self.train.log_every_steps),
        )


def window_means(loss_S: torch.Tensor, window: int) -> list[float]:
    """Means of every `window` values; the last ones that are fewer are left out."""
    whole = len(loss_S) // window * window
    return loss_S[:whole].double().reshape(-1, window).mean(dim=1).tolist()


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


class CellStore:
    """Finished cells in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def read(self, cell: str) -> CellResult | None:
        """The figures of a finished cell, or None.

        Raises:
            DataError: the file holds something else.
        """
        path = self._directory / f"{cell}.json"
        if not path.exists():
            return None
        try:
            return CellResult(**read_json(path))
        except TypeError as error:
            raise DataError(f"{path}: not a finished cell, remove it: {error}") from None

    def write(self, result: CellResult) -> None:
        """Keeps a finished cell; the file appears whole."""
        self._directory.mkdir(parents=True, exist_ok=True)
        write_json(self._directory / f"{result.cell}.json", asdict(result))
