"""A run of two ranks, and how its checkpoint goes on on one rank, on two and on three: the next losses side by side.

    python -m model.bench.resume             two GPUs (three ranks are left out): bench/resume.json
    python -m model.bench.resume --tiny      processes of the CPU, a small model

The trainer itself runs, with its reader and stochastic length, on model.study_world's long histories.
"""

from __future__ import annotations

import argparse
import logging
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from features.dataset import open_dataset
from features.errors import DataError
from features.files import read_json, write_json
from model.bench.step_batches import TINY, BenchShape
from model.bench.step_data import bench_train_config, long_world, world_config
from model.bench.step_ranks import default_config
from model.stage import quiet_unless_first, run_stage
from model.study.world import write_world
from model.train import build_trainer
from model.training.checkpoint import load_checkpoint, save_checkpoint
from model.training.distributed import World, joined_world
from model.training.trainer import Trainer

logger = logging.getLogger(__name__)

_LOG_EVERY = 5
_RANKS = 2
# Steps before and after the checkpoint; the small world has eleven in all.
_STEPS, _TINY_STEPS = (20, 10), (6, 5)


class LogTracker:
    """A tracker that says every point in the log."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """One line."""
        logger.info("step %d: %s", step, ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))

    def close(self) -> None:
        """Nothing is left."""


def make_trainer(streams: Path, world: World, *, tiny: bool) -> Trainer:
    """The trainer of every run here; without dropout, which each rank would draw for itself."""
    shape, device = (TINY, torch.device("cpu")) if tiny else (BenchShape(), torch.device("cuda"))
    config = bench_train_config(shape, device, steps=_LOG_EVERY)
    sampling = config.sampling.model_copy(update={"kind": "sl"})
    config = config.model_copy(update={"sampling": sampling, "batch_size": _RANKS * shape.num_requests})
    trackers = [LogTracker()] if world.is_first else []
    model = world_config(default_config(shape, device))
    return build_trainer(open_dataset(streams), config, model, world=world, trackers=trackers)[0]


def run_rank(arguments: argparse.Namespace) -> None:
    """One rank's part of one run; the first writes the losses of the steps after the checkpoint."""
    with joined_world(torch.device("cpu" if arguments.tiny else "cuda")) as world:
        quiet_unless_first(world.is_first)
        torch.set_num_threads(1)
        before, after = _TINY_STEPS if arguments.tiny else _STEPS
        trainer = make_trainer(arguments.work / "streams", world, tiny=arguments.tiny)
        if arguments.phase == "straight":
            trainer.fit(until_step=before)
            save_checkpoint(arguments.work / "checkpoint", trainer.capture(), world)
        else:
            trainer.restore(load_checkpoint(arguments.work / "checkpoint"))
        trainer.fit(until_step=before + after)
        losses = trainer.losses()[before:, 0].tolist()
        if world.is_first:
            write_json(arguments.out, losses)


def run_all(arguments: argparse.Namespace) -> None:
    """The run, its continuations, and the table.

    Raises:
        DataError: a run failed, or there are fewer than two GPUs.
    """
    if not arguments.tiny and torch.cuda.device_count() < _RANKS:
        raise DataError(f"bench_resume: {torch.cuda.device_count()} GPUs are here, two are needed; --tiny needs none")
    shape, counts = (TINY, (1, 2, 3)) if arguments.tiny else (BenchShape(), (1, 2))
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        write_world(work / "streams", long_world(shape))
        runs = {"two ranks, uninterrupted": _start(work, "straight", _RANKS, tiny=arguments.tiny)}
        for ranks in counts:
            runs[f"resumed on {ranks}"] = _start(work, "resumed", ranks, tiny=arguments.tiny)
    straight, *resumed = runs.values()
    largest = max(abs(a - b) / abs(b) for losses in resumed for a, b in zip(losses, straight, strict=True))
    for line in table_lines(runs):
        logger.info("%s", line)
    logger.info("largest relative difference: %.2g", largest)
    content = {
        "device": "cpu" if arguments.tiny else torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "first_step": 1 + (_TINY_STEPS if arguments.tiny else _STEPS)[0],
        "losses": runs,
        "largest_relative_difference": largest,
    }
    write_json(arguments.out, content)


def _start(work: Path, run: str, ranks: int, *, tiny: bool) -> list[float]:
    """Runs `ranks` processes of this module to their end; returns the losses."""
    out = work / f"{run}-{ranks}.json"
    launcher = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    module = [sys.executable, "-m", *(launcher if ranks > 1 else []), "model.bench.resume"]
    options = ["--phase", run, "--work", str(work), "--out", str(out), *(["--tiny"] if tiny else [])]
    logger.info("%s on %d rank(s)", run, ranks)
    if subprocess.run([*module, *options], check=False).returncode:
        raise DataError(f"bench_resume: the run '{run}' on {ranks} rank(s) failed; its output is above")
    losses = read_json(out)
    assert isinstance(losses, list)
    return losses


def table_lines(runs: Mapping[str, Sequence[float]]) -> list[str]:
    """A line per run."""
    return [f"{name:>26}: {' '.join(f'{loss:.6f}' for loss in losses)}" for name, losses in runs.items()]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m model.bench.resume", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench/resume.json"))
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU")
    parser.add_argument("--phase", choices=("straight", "resumed"), help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    run_stage(lambda: run_rank(arguments) if arguments.phase else run_all(arguments))


if __name__ == "__main__":
    main()
