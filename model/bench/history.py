"""Does the model use its histories? Trains twice on the same requests, with histories and with all of them emptied.

python -m model.bench.history          data/streams and params.yaml in, a table and bench/history.json out
"""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from features.dataset import StreamsDataset, open_dataset
from features.files import write_json
from model.config import ModelConfig
from model.evaluation import measure, score_candidates
from model.floor import floor_logits, read_impressions
from model.reader import Reader
from model.stage import device_of, max_lengths, run_stage
from model.train import build_trainer
from model.training.sampler import EVALUATION, TRAIN
from model.training.train_config import EvaluateConfig, TrainConfig

logger = logging.getLogger(__name__)
_PARAMS, _STREAMS, _OUT = Path("params.yaml"), Path("data/streams"), Path("bench/history.json")
_FIGURES = ("ne", "auc", "floor_ne", "floor_auc", "positives")


def figures(dataset: StreamsDataset, *, with_histories: bool) -> dict[str, dict[str, float | int | None]]:
    """NE and AUC per task after a training run, beside the floor's."""
    config, train_config = EvaluateConfig.load(_PARAMS), TrainConfig.load(_PARAMS)
    model_config = ModelConfig.load(_PARAMS)
    torch.set_num_threads(train_config.num_threads)
    spec, tasks = dataset.manifest.spec, model_config.heads.tasks
    lengths = max_lengths(model_config, spec) if with_histories else (0,) * len(spec.streams)
    trainer, _ = build_trainer(dataset, train_config, model_config, lengths=lengths)
    trainer.fit()
    reader = Reader(dataset, split=EVALUATION, batch_size=config.batch_size, max_lengths=lengths)
    scores = score_candidates(trainer.ranker, reader, device_of(train_config.device, "train.device"))
    floor = floor_logits(
        read_impressions(dataset, TRAIN),
        read_impressions(dataset, EVALUATION),
        [spec.actions.index(task) for task in tasks],
        smoothing=config.floor.smoothing,
    )
    evaluation = measure(scores, floor, tasks, groups=config.groups, cut_ms=dataset.manifest.cut_ms)
    return {task: {name: getattr(result, name) for name in _FIGURES} for task, result in evaluation.tasks.items()}


def compare() -> None:
    """Runs both and writes the table."""
    dataset = open_dataset(_STREAMS)
    with_histories = figures(dataset, with_histories=True)
    emptied = figures(dataset, with_histories=False)
    write_json(_OUT, {"with_histories": with_histories, "emptied": emptied})
    logger.info("%18s %9s %9s %9s %9s", "task", "NE", "NE empty", "AUC", "AUC empty")
    for task, result in with_histories.items():
        cells = (result["ne"], emptied[task]["ne"], result["auc"], emptied[task]["auc"])
        logger.info("%18s %s", task, " ".join(f"{'-':>9}" if cell is None else f"{cell:9.4f}" for cell in cells))


if __name__ == "__main__":
    run_stage(compare)
