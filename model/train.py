"""The stage `train`: a validated streams dataset in, a trained ranker out."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from features.dataset import StreamsDataset, open_dataset
from features.errors import DataError
from features.files import atomic_directory, read_json, write_json
from model.checkpoint import Checkpoint, load_checkpoint, load_header, save_checkpoint, write_checkpoint
from model.config import ModelConfig
from model.flops import reader_flops
from model.ranker import Ranker
from model.reader import Reader
from model.sampler import TRAIN
from model.stage import device_of, max_lengths, run_stage, write_csv
from model.train_config import TrainConfig
from model.trainer import RunIdentity, Trainer

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

    Raises:
        DataError: the dataset is not validated, params.yaml does not fit it, or the loss is not finite.
    """
    config, model_config = TrainConfig.load(paths.params), ModelConfig.load(paths.params)
    dataset = open_dataset(paths.streams)
    check_validated(paths.validation, dataset)
    torch.set_num_threads(config.num_threads)
    # the lock on the output is held from here on, so that a second run stops before it trains
    with atomic_directory(paths.out) as directory:
        trainer, reader = build_trainer(dataset, config, model_config)
        checkpoints = CheckpointStore(paths.checkpoints, run_hash(dataset, config, model_config))
        resumed = checkpoints.latest()
        if resumed:
            trainer.restore(resumed)
            logger.info("train: continuing the interrupted run at step %d of %d", trainer.step, trainer.total_steps)
        started = time.monotonic()
        trainer.fit(save=checkpoints.save)
        logger.info("train: %d steps in all, this run took %.1f s", trainer.step, time.monotonic() - started)
        write_checkpoint(directory, trainer.capture())
    alpha = None if config.sampling.kind == "none" else config.sampling.alpha
    write_metrics(paths.metrics, trainer, reader, window=config.log_every_steps, alpha=alpha)
    checkpoints.clear()


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
    dataset: StreamsDataset, config: TrainConfig, model_config: ModelConfig, *, lengths: tuple[int, ...] | None = None
) -> tuple[Trainer, Reader]:
    """A trainer at step 0 and the reader that it draws from; seeds torch.

    Args:
        dataset: what to train on.
        config: section train.
        model_config: section model.
        lengths: history tokens per stream of the dataset, those of the configuration unless given.

    Raises:
        DataError: there is nothing to train on, or params.yaml does not fit the dataset.
    """
    spec, device = dataset.manifest.spec, device_of(config.device, "train.device")
    torch.manual_seed(config.seed)
    ranker = Ranker(model_config, spec, device=device)
    ranker.set_base_rates(base_rates(dataset, model_config.heads.tasks))
    reader = Reader(
        dataset,
        split=TRAIN,
        batch_size=config.batch_size,
        max_lengths=max_lengths(model_config, spec) if lengths is None else lengths,
        shuffle_seed=config.seed,
        num_workers=config.num_workers,
    )
    identity = RunIdentity(run_hash(dataset, config, model_config), dataset.manifest.vocabulary_hash)
    return Trainer(ranker, reader, config, identity=identity, device=device), reader


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

    How often to log and to save, and how many processes read, decides nothing.
    """
    indifferent = {"checkpoint_every_steps", "log_every_steps", "num_workers"}
    decisive = {
        "content": dataset.manifest.content_checksum,
        "vocabulary": dataset.manifest.vocabulary_hash,
        "train": config.model_dump(mode="json", exclude=indifferent),
        "model": model_config.model_dump(mode="json"),
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


class CheckpointStore:
    """Checkpoints of one unfinished run, a directory per step; those of another run are removed, not continued."""

    def __init__(self, directory: Path, run_hash: str) -> None:
        self._directory = directory
        self._run_hash = run_hash

    def latest(self) -> Checkpoint | None:
        """The newest usable checkpoint of this run; anything else is removed, and said so."""
        for path in sorted(self._directory.glob("step-*"), reverse=True):
            try:
                if load_header(path).run_hash == self._run_hash:
                    return load_checkpoint(path)
                logger.info("train: %s belongs to a run with other data or settings, removed", path)
            except DataError as error:
                logger.warning("train: checkpoint is unusable, removed: %s", error)
            shutil.rmtree(path)
        return None

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes a checkpoint, then removes the older ones."""
        target = self._directory / f"step-{checkpoint.header.step:012d}"
        save_checkpoint(target, checkpoint)
        for path in self._directory.glob("step-*"):
            if path != target:
                shutil.rmtree(path)
                path.with_name(f".{path.name}.lock").unlink(missing_ok=True)

    def clear(self) -> None:
        """Removes all of them: the run is complete."""
        shutil.rmtree(self._directory, ignore_errors=True)


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
