"""The stage `train`: a validated streams dataset in, a trained ranker out."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from features.config import FeaturesConfig
from features.dataset import StreamsDataset, open_dataset
from features.errors import DataError
from features.files import read_json, write_json
from model.config import ModelConfig
from model.flops import reader_flops
from model.ranker import Ranker
from model.reader import Reader
from model.stage import device_of, max_lengths, quiet_unless_first, run_stage, write_csv
from model.training.checkpoint import (
    checkpoint_digest,
    load_checkpoint,
    load_header,
    shared_directory,
    write_checkpoint,
)
from model.training.checkpoint_store import CheckpointStore
from model.training.distributed import World, joined_world
from model.training.early_stop import EarlyStop, hold_out
from model.training.lbsl import LoadBalancer
from model.training.loss_history import NonFiniteLossError
from model.training.sampler import TRAIN, RequestIndex, index_requests
from model.training.tracking import Tracker, open_trackers
from model.training.train_config import TrainConfig
from model.training.trainer import Companions, RunIdentity, Trainer
from model.training.warm_start import check_vocabulary, check_warm_start

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainPaths:
    """Inputs and outputs of the stage."""

    params: Path
    streams: Path
    validation: Path
    out: Path
    metrics: Path

    @property
    def checkpoints(self) -> Path:
        """Where an interrupted run leaves its state: beside `out`, because DVC removes a stage's outputs first."""
        return self.out.parent / ".checkpoints" / self.out.name


def train(paths: TrainPaths) -> None:
    """Runs the stage: trains, or continues the same run where it was interrupted, and writes all outputs.

    Under torchrun it is called by every rank.

    Raises:
        DataError: the dataset is not validated, params.yaml does not fit it, the loss is not finite, or a rank is gone.
    """
    config, model_config = TrainConfig.load(paths.params), ModelConfig.load(paths.params)
    dataset = open_dataset(paths.streams)
    check_validated(paths.validation, dataset)
    torch.set_num_threads(config.num_threads)
    with joined_world(device_of(config.device, "train.device")) as world:
        quiet_unless_first(world.is_first)
        _train(paths, dataset, config, model_config=model_config, world=world)


def _train(
    paths: TrainPaths, dataset: StreamsDataset, config: TrainConfig, *, model_config: ModelConfig, world: World
) -> None:
    # the lock on the output is held from here on, so that a second run stops before it trains
    with shared_directory(paths.out, world) as directory:
        identity_hash = run_hash(dataset, config, model_config)
        checkpoints = CheckpointStore(paths.checkpoints, identity_hash, world)
        resumed = checkpoints.latest()
        trackers = open_trackers(config.tracking, paths.metrics.parent, resume=bool(resumed)) if world.is_first else []
        trainer, reader = build_trainer(dataset, config, model_config, world=world, trackers=trackers)
        if resumed:
            trainer.restore(resumed)
            logger.info("train: continuing the interrupted run at step %d of %d", trainer.step, trainer.total_steps)
        elif config.warm_start:
            warm_start(trainer, dataset, config.warm_start, params=paths.params)
        started = time.monotonic()
        try:
            trainer.fit(save=checkpoints.save)
        except NonFiniteLossError as error:
            raise (error.saved(paths.checkpoints.parent) if world.is_first else error) from None
        for tracker in trackers:
            tracker.close()
        logger.info("train: %d steps in all, this run took %.1f s", trainer.step, time.monotonic() - started)
        write_checkpoint(directory, trainer.capture(), world)
    if world.is_first:
        alpha = None if config.sampling.kind == "none" else config.sampling.alpha
        write_metrics(paths.metrics, trainer, reader, window=config.log_every_steps, alpha=alpha)
    checkpoints.clear()


def warm_start(trainer: Trainer, dataset: StreamsDataset, source: Path, *, params: Path) -> None:
    """Begins with the weights and the optimizer of the model in `source`.

    Raises:
        DataError: it has another schema, a larger vocabulary or other settings, or the ids are numbered otherwise.
    """
    header, name = load_header(source), f"train.warm_start: {source}"
    check_warm_start(header, trainer.ranker.config, dataset.manifest.spec, source=name)
    check_vocabulary(header, FeaturesConfig.load(params), vocabulary_hash=dataset.manifest.vocabulary_hash, source=name)
    trainer.warm_start(load_checkpoint(source), source=name)
    logger.info("train: going on from %s, which took %d steps", source, header.step)


def check_validated(path: Path, dataset: StreamsDataset) -> None:
    """Refuses a dataset that the validate stage has not passed.

    Raises:
        DataError: validation.json is missing, tells of a failure, or is about another content.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file; run the validate stage first")
    report = read_json(path)
    if not isinstance(report, dict) or report.get("passed") is not True:
        raise DataError(f"{path}: the dataset did not pass its validation; nothing is trained on it")
    if report.get("content_checksum") != dataset.manifest.content_checksum:
        raise DataError(f"{path}: is about another content than {dataset.path}; run the validate stage again")


def build_trainer(
    dataset: StreamsDataset,
    config: TrainConfig,
    model_config: ModelConfig,
    *,
    lengths: tuple[int, ...] | None = None,
    world: World | None = None,
    trackers: Sequence[Tracker] = (),
) -> tuple[Trainer, Reader]:
    """A trainer at step 0 and the reader that it draws from; seeds torch.

    Args:
        dataset: what to train on.
        config: section train.
        model_config: section model.
        lengths: history tokens per stream of the dataset, those of the configuration unless given.
        world: the ranks, this process alone unless given.
        trackers: take figures while it trains.

    Raises:
        DataError: there is nothing to train on, or params.yaml does not fit the dataset.
    """
    world = world or World()
    spec, device = dataset.manifest.spec, world.own_device(device_of(config.device, "train.device"))
    lengths = max_lengths(model_config, spec) if lengths is None else lengths
    torch.manual_seed(config.seed)
    ranker = Ranker(model_config, spec, device=device, world=world)
    ranker.set_base_rates(base_rates(dataset, model_config.heads.tasks))
    # Every rank has drawn the same weights; from here on each draws its own dropout.
    if world.rank:
        torch.manual_seed(config.seed + world.rank)
    balancer = _balancer(config, lengths, world)
    index, early_stop = _early_stop(dataset, config, lengths, world=world)
    reader = Reader(
        dataset,
        split=TRAIN,
        batch_size=config.batch_size,
        max_lengths=lengths,
        shuffle_seed=config.seed,
        num_workers=config.num_workers,
        world=world,
        rule=balancer,
        index=index,
        pin=device.type == "cuda",
    )
    identity = RunIdentity(run_hash(dataset, config, model_config), dataset.manifest.vocabulary_hash)
    companions = Companions(world, balancer, early_stop, trackers)
    return Trainer(ranker, reader, config, identity=identity, device=device, companions=companions), reader


def _balancer(config: TrainConfig, lengths: tuple[int, ...], world: World) -> LoadBalancer | None:
    if config.sampling.kind == "none":
        return None
    return LoadBalancer(
        config.sampling,
        lengths,
        seed=config.seed,
        num_ranks=world.size,
        sum_over_ranks=world.for_reader().sum_host,
    )


def _early_stop(
    dataset: StreamsDataset, config: TrainConfig, lengths: tuple[int, ...], *, world: World
) -> tuple[RequestIndex, EarlyStop | None]:
    """The requests to train on, and who looks at the others."""
    index = index_requests(dataset, TRAIN)
    if config.early_stop is None:
        return index, None
    held_out = hold_out(dataset, index, config.early_stop.holdout_share)
    reader = Reader(
        dataset,
        split=TRAIN,
        batch_size=config.batch_size,
        max_lengths=lengths,
        world=world,
        index=held_out.newest,
    )
    return held_out.train, EarlyStop(config.early_stop, reader, world)


def base_rates(dataset: StreamsDataset, tasks: tuple[str, ...]) -> torch.Tensor:
    """(K,) share of positives of each task among the training candidates.

    Raises:
        DataError: there are none.
    """
    bit_K = np.array([dataset.manifest.spec.actions.index(task) for task in tasks])
    positives_K, count = np.zeros(len(tasks)), 0
    for shard in dataset.shards:
        masks = shard.requests.list("candidate.action_mask")
        mask_C = masks.values[np.repeat(shard.requests.column("split") == TRAIN, masks.lengths)]
        positives_K += [np.count_nonzero(mask_C >> bit & 1) for bit in bit_K]
        count += mask_C.size
    if count == 0:
        raise DataError(f"{dataset.path}: no requests before the evaluation window; nothing to train on")
    return torch.from_numpy(positives_K / count)


def run_hash(dataset: StreamsDataset, config: TrainConfig, model_config: ModelConfig) -> str:
    """Hex digest of what decides the weights: rows, vocabulary, sections train and model.

    How often to log and to save, where to track, and how many processes read or compute, decides nothing.
    """
    indifferent = {"checkpoint_every_steps", "log_every_steps", "num_workers", "tracking"}
    start = None if config.warm_start is None else checkpoint_digest(config.warm_start)
    decisive = {
        "warm_start": start,
        "content": dataset.manifest.content_checksum,
        "vocabulary": dataset.manifest.vocabulary_hash,
        "train": config.model_dump(mode="json", exclude=indifferent),
        "model": model_config.model_dump(mode="json"),
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def write_metrics(
    directory: Path, trainer: Trainer, reader: Reader, *, window: int, alpha: float | None = None
) -> None:
    """Writes train.json and loss.csv (mean loss of every `window` steps); no times, the outputs are deterministic.

    `alpha` is that of stochastic length, which makes training cheaper; None where histories stay whole.
    """
    losses_SX = trainer.losses().double()
    starts = range(0, losses_SX.shape[0], window)
    parts = [losses_SX[start : start + window] for start in starts]
    rows = [(start + len(part), part[:, 0].mean().item()) for start, part in zip(starts, parts, strict=True)]
    write_csv(directory / "loss.csv", ("step", "loss"), rows)
    last_X = parts[-1].mean(dim=0).tolist()
    flops = reader_flops(trainer.ranker.config, reader, alpha=alpha)
    logger.info("train: %.3g GFLOP a request in training, %.3g scored", flops.training / 1e9, flops.inference / 1e9)
    content = {
        "loss": last_X[0],
        "task_losses": dict(zip(trainer.ranker.config.heads.tasks, last_X[1:], strict=True)),
        "steps": trainer.step,
        "requests": trainer.num_requests,
        "candidates": trainer.num_candidates,
        "tokens": trainer.num_tokens,
        "training_flops_per_request": flops.training,
        "inference_flops_per_request": flops.inference,
    }
    write_json(directory / "train.json", content)


def main() -> None:
    """Command line of the stage; every setting is in params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m model.train", description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--streams", type=Path, default=Path("data/streams"))
    parser.add_argument("--validation", type=Path, default=Path("data/validation.json"))
    parser.add_argument("--out", type=Path, default=Path("models/ranker"))
    parser.add_argument("--metrics", type=Path, default=Path("metrics"))
    paths = TrainPaths(**vars(parser.parse_args()))
    run_stage(lambda: train(paths))


if __name__ == "__main__":
    main()
