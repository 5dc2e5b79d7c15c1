"""The stage `evaluate`: a trained ranker and the evaluation window in, its figures beside the floor's out."""

from __future__ import annotations

import argparse
import dataclasses
import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from threadpoolctl import threadpool_limits

from features.dataset import StreamsDataset, open_dataset
from features.errors import DataError
from features.files import write_json
from features.spec import FeatureSpec
from model.calibration import calibration_bins
from model.config import ModelConfig
from model.evaluation import Evaluation, Scores, measure, score_candidates
from model.floor import floor_logits, read_impressions
from model.ranker import Ranker
from model.reader import Reader
from model.stage import device_of, max_lengths, quiet_unless_first, run_stage, write_csv
from model.training.checkpoint import check_compatible, load_checkpoint
from model.training.distributed import World, joined_world
from model.training.sampler import EVALUATION, TRAIN
from model.training.train_config import EvaluateConfig

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EvaluatePaths:
    """Inputs and outputs of the stage."""

    params: Path
    streams: Path
    model: Path
    metrics: Path


def evaluate(paths: EvaluatePaths) -> None:
    """Runs the stage: scores every evaluation candidate once and writes all figures.

    Under torchrun it is called by every rank; they share the scoring, the first does the rest.

    Raises:
        DataError: the model does not belong to the dataset or to params.yaml, or there is nothing to evaluate.
    """
    config, model_config = EvaluateConfig.load(paths.params), ModelConfig.load(paths.params)
    dataset = open_dataset(paths.streams)
    torch.set_num_threads(config.num_threads)
    spec, tasks = dataset.manifest.spec, model_config.heads.tasks
    check_groups(config, spec)
    with joined_world(device_of(config.device, "evaluate.device")) as world:
        quiet_unless_first(world.is_first)
        scores = score_dataset(dataset, paths.model, config, model_config=model_config, world=world)
    if not world.is_first:
        return
    logger.info("evaluate: fitting the floor")
    with threadpool_limits(config.num_threads):
        floor = floor_logits(
            read_impressions(dataset, TRAIN),
            read_impressions(dataset, EVALUATION),
            [spec.actions.index(task) for task in tasks],
            smoothing=config.floor.smoothing,
        )
    evaluation = measure(scores, floor, tasks, groups=config.groups, cut_ms=dataset.manifest.cut_ms)
    write_evaluation(paths.metrics, evaluation)
    write_calibration(paths.metrics / "calibration.csv", scores, tasks, num_bins=config.calibration_bins)
    for line in summary_lines(evaluation):
        logger.info("%s", line)


def check_groups(config: EvaluateConfig, spec: FeatureSpec) -> None:
    """Refuses names that are no action; an action that is no task is left out of the means.

    Raises:
        DataError: names the key and the unknown action.
    """
    for group, names in config.groups.items():
        for name in names:
            if name not in spec.actions:
                raise DataError(
                    f"params.yaml: evaluate.groups.{group}: no action '{name}', there are {', '.join(spec.actions)}"
                )


def score_dataset(
    dataset: StreamsDataset,
    model: Path,
    config: EvaluateConfig,
    *,
    model_config: ModelConfig,
    world: World | None = None,
) -> Scores:
    """Loads the model and scores the evaluation window, together with the other ranks where there are any.

    Raises:
        DataError: the model does not belong to the dataset or configuration, or the window is empty.
    """
    world = world or World()
    spec, device = dataset.manifest.spec, world.own_device(device_of(config.device, "evaluate.device"))
    checkpoint = load_checkpoint(model)
    check_compatible(
        checkpoint.header, model_config, spec, vocabulary_hash=dataset.manifest.vocabulary_hash, source=model
    )
    ranker = Ranker(model_config, spec, device=device, world=world)
    part_of = ranker.embeddings.tables.part_of
    tables = {name: part_of(whole) for name, whole in checkpoint.tensors["tables"].items()}
    ranker.load_state(dict(checkpoint.tensors["dense"]), tables)
    reader = Reader(
        dataset,
        split=EVALUATION,
        batch_size=config.batch_size,
        max_lengths=max_lengths(model_config, spec),
        world=world,
    )
    if reader.num_requests == 0:
        raise DataError(f"{dataset.path}: no requests in the evaluation window")
    return score_candidates(ranker, reader, device, world=world)


def write_evaluation(directory: Path, evaluation: Evaluation) -> None:
    """Writes evaluate.json and tasks.csv; what is undefined is null and an empty cell."""
    write_json(directory / "evaluate.json", dataclasses.asdict(evaluation))
    columns = ("ne", "floor_ne", "auc", "floor_auc")
    rows = [(task, *(getattr(result, name) for name in columns)) for task, result in evaluation.tasks.items()]
    write_csv(directory / "tasks.csv", ("task", *columns), rows)


def write_calibration(target: Path, scores: Scores, tasks: tuple[str, ...], *, num_bins: int) -> None:
    """Writes the bins of every task."""
    rows = []
    for column, task in enumerate(tasks):
        logits_C, labels_C = scores.logits_CK[:, column].numpy(), scores.labels_CK[:, column].numpy()
        for number, part in enumerate(calibration_bins(logits_C, labels_C, num_bins)):
            rows.append((task, number, part.mean_predicted, part.mean_label, part.count))
    write_csv(target, ("task", "bin", "mean_predicted", "mean_label", "count"), rows)


def summary_lines(evaluation: Evaluation) -> list[str]:
    """A small table for the log."""
    lines = [f"{'task':>18} {'NE':>7} {'floor':>7} {'AUC':>7} {'floor':>7} {'GAUC':>7} {'positives':>10}"]
    for task, result in evaluation.tasks.items():
        figures = (result.ne, result.floor_ne, result.auc, result.floor_auc, result.gauc)
        cells = " ".join(f"{'-':>7}" if figure is None else f"{figure:7.4f}" for figure in figures)
        lines.append(f"{task:>18} {cells} {result.positives:>10}")
    return lines


def main() -> None:
    """Command line of the stage; every setting is in params.yaml."""
    parser = argparse.ArgumentParser(prog="python -m model.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--streams", type=Path, default=Path("data/streams"))
    parser.add_argument("--model", type=Path, default=Path("models/ranker"))
    parser.add_argument("--metrics", type=Path, default=Path("metrics"))
    paths = EvaluatePaths(**vars(parser.parse_args()))
    run_stage(lambda: evaluate(paths))


if __name__ == "__main__":
    main()
