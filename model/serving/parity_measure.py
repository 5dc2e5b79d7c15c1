"""Measures served models on a window: quality, bytes, latency, throughput.

Legend: C candidates, K tasks.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.batch import Batch
from model.embeddings import table_fields
from model.evaluation import Scores, measure
from model.loss import task_labels
from model.progress import Progress
from model.serving.parity_table import ParityTable, TaskFigures, VariantFigures, versions
from model.serving.score_config import ScoreConfig
from model.serving.score_window import Window
from model.serving.scorer_model import ServedModel
from model.training.train_config import Group

logger = logging.getLogger(__name__)
_LATENCY_REQUESTS = 200


@dataclass(frozen=True)
class Served:
    """A model to measure, loaded when its turn comes.

    Attributes:
        label: of its row.
        load: gives the model.
    """

    label: str
    load: Callable[[], ServedModel]


def measure_all(
    served: Sequence[Served], window: Window, *, config: ScoreConfig, groups: Mapping[Group, tuple[str, ...]]
) -> ParityTable:
    """Scores the window once per model.

    Args:
        served: rows of the table; the others are compared with the first.
        window: what to score.
        config: section score.
        groups: tasks of C-NE and E-NE.
    """
    rows: list[VariantFigures] = []
    reference_CK: Tensor | None = None
    num_candidates = 0
    for one in served:
        model = one.load()
        scores, seconds = _score(model, one, window, config)
        probability_CK = torch.sigmoid(scores.logits_CK)
        reference_CK = probability_CK if reference_CK is None else reference_CK
        num_candidates = probability_CK.shape[0]
        difference = float((probability_CK - reference_CK).abs().max())
        rates = _rates(num_candidates / seconds, _latencies(model, one, window, config))
        rows.append(_row(model, one, scores, rates, difference=difference, groups=groups))
    return ParityTable(tuple(rows), window.num_requests, num_candidates, device_name(config), versions())


@dataclass(frozen=True)
class _Rates:
    candidates_per_s: float
    p50_ms: float
    p99_ms: float


def _rates(candidates_per_s: float, latency_ms: list[float]) -> _Rates:
    return _Rates(candidates_per_s, float(np.percentile(latency_ms, 50)), float(np.percentile(latency_ms, 99)))


def _row(
    model: ServedModel,
    served: Served,
    scores: Scores,
    rates: _Rates,
    *,
    difference: float,
    groups: Mapping[Group, tuple[str, ...]],
) -> VariantFigures:
    fields, dim = table_fields(model.config, model.spec), model.config.dim
    table_bytes = model.table_format.num_bytes(fields, dim)
    no_floor = [None] * scores.logits_CK.shape[1]
    evaluation = measure(scores, no_floor, model.config.heads.tasks, groups=groups, cut_ms=0)
    return VariantFigures(
        label=served.label,
        tasks={task: TaskFigures(result.ne, result.auc) for task, result in evaluation.tasks.items()},
        c_ne=evaluation.c_ne,
        e_ne=evaluation.e_ne,
        table_bytes=table_bytes,
        table_share=table_bytes / (4 * dim * sum(field.size for field in fields)),
        largest_difference=difference,
        latency_p50_ms=rates.p50_ms,
        latency_p99_ms=rates.p99_ms,
        candidates_per_s=rates.candidates_per_s,
    )


def _score(model: ServedModel, served: Served, window: Window, config: ScoreConfig) -> tuple[Scores, float]:
    """Scores of the window and the seconds that they took."""
    tasks, actions = model.config.heads.tasks, model.spec.actions
    logits, labels, users = [], [], []
    progress = Progress(logger, f"parity, {served.label}: batch", total=len(window.plan))
    started = time.perf_counter()
    for batch in window.batches():
        predictions = model(batch, micro_batch_size=config.micro_batch_size)
        logits.append(predictions.logits_CK.cpu())
        labels.append(task_labels(batch.candidates.action_mask_C, tasks, actions).bool())
        users.append(torch.repeat_interleave(batch.user_id_B, batch.candidates.offsets_B1.diff()))
        progress.advance(requests=batch.num_requests, candidates=users[-1].numel())
    seconds = time.perf_counter() - started
    progress.log()
    return Scores(torch.cat(logits), torch.cat(labels), torch.cat(users), window.num_requests), seconds


def _latencies(model: ServedModel, served: Served, window: Window, config: ScoreConfig) -> list[float]:
    """Milliseconds of single requests; the first tenth warms caches up and does not count."""

    def score(batch: Batch) -> None:
        model(batch, micro_batch_size=config.micro_batch_size).logits_CK.cpu()

    latencies = [_milliseconds(score, batch) for batch in window.single_requests(_LATENCY_REQUESTS)]
    return latencies[len(latencies) // 10 :]


def one_at_a_time(score: Callable[[Batch], None], window: Window) -> float:
    """Candidates a second of a function that is given one request after the other; the first tenth does not count."""
    batches = list(window.single_requests(_LATENCY_REQUESTS))
    latencies = [_milliseconds(score, batch) for batch in batches]
    counted = slice(len(batches) // 10, None)
    candidates = sum(batch.candidates.action_mask_C.numel() for batch in batches[counted])
    return 1000 * candidates / sum(latencies[counted])


def _milliseconds(score: Callable[[Batch], None], batch: Batch) -> float:
    started = time.perf_counter()
    score(batch)
    return 1000 * (time.perf_counter() - started)


def device_name(config: ScoreConfig) -> str:
    """The card, or the processor and its threads."""
    if config.device == "cuda":
        return torch.cuda.get_device_name()
    plural = "" if torch.get_num_threads() == 1 else "s"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread{plural}"
