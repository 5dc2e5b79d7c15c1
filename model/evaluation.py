"""From the scores of every evaluation candidate to the figures of metrics/evaluate.json.

Legend: C candidates, K tasks.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model.loss import task_labels
from model.progress import Progress
from model.ranker import Ranker
from model.reader import Reader
from model.training.distributed import World
from model.training.train_config import Group

logger = logging.getLogger(__name__)
_LOG_EVERY_BATCHES = 50


@dataclass(frozen=True)
class Scores:
    """Predictions and labels of a split, in the reader's order.

    Attributes:
        logits_CK: (C, K) float32.
        labels_CK: (C, K) bool.
        user_id_C: (C,) int64 raw ids.
        num_requests: requests scored.
    """

    logits_CK: Tensor
    labels_CK: Tensor
    user_id_C: Tensor
    num_requests: int


@torch.inference_mode()
def score_candidates(ranker: Ranker, reader: Reader, device: torch.device, *, world: World | None = None) -> Scores:
    """Scores every candidate of the reader's split once, in evaluation mode.

    Args:
        ranker: the model.
        reader: of the split to score; with several ranks, of this rank's parts of its batches.
        device: where the model is.
        world: the ranks that share the work; each gets all scores, in the order in which one rank would score.
    """
    ranker.eval()
    tasks, actions = ranker.config.heads.tasks, ranker.spec.actions
    logits, labels, users = [], [], []
    progress = Progress(logger, "evaluate: batch", total=reader.num_batches)
    for number, batch in enumerate(reader, start=1):
        logits.append(ranker(batch.to(device)).logits_CK.float().cpu())
        labels.append(task_labels(batch.candidates.action_mask_C, tasks, actions).bool())
        users.append(torch.repeat_interleave(batch.user_id_B, batch.candidates.offsets_B1.diff()))
        progress.advance(requests=batch.num_requests, candidates=users[-1].numel())
        if number % _LOG_EVERY_BATCHES == 0 or number == reader.num_batches:
            progress.log()
    if world is not None and world.size > 1:
        logits, labels, users = (_in_order(world.gather_objects(parts)) for parts in (logits, labels, users))
    return Scores(torch.cat(logits), torch.cat(labels), torch.cat(users), reader.num_requests)


def _in_order(parts_of_ranks: list[list[Tensor]]) -> list[Tensor]:
    """Every batch's parts, rank by rank."""
    return [part for parts in zip(*parts_of_ranks, strict=True) for part in parts]


@dataclass(frozen=True)
class TaskResult:
    """The figures of one task; None where its labels are all equal, or where the floor could not be fitted."""

    ne: float | None
    auc: float | None
    gauc: float | None
    positives: int
    base_rate: float
    num_candidates: int
    gauc_users: int
    gauc_users_skipped: int
    floor_ne: float | None
    floor_auc: float | None


@dataclass(frozen=True)
class Evaluation:
    """The content of metrics/evaluate.json."""

    tasks: dict[str, TaskResult]
    c_ne: float | None
    e_ne: float | None
    floor_c_ne: float | None
    floor_e_ne: float | None
    num_requests: int
    num_candidates: int
    cut_ms: int


def measure(
    scores: Scores,
    floor: Sequence[np.ndarray | None],
    tasks: Sequence[str],
    *,
    groups: Mapping[Group, tuple[str, ...]],
    cut_ms: int,
) -> Evaluation:
    """Computes every figure.

    Args:
        scores: of all evaluation candidates.
        floor: the floor's logits per task, candidates in the order of `scores`.
        tasks: names of the K columns.
        groups: tasks of C-NE (`consumption`) and E-NE (`engagement`).
        cut_ms: start of the evaluation window.
    """
    # torchmetrics loads for a second, which who only scores candidates does not need.
    from model.metrics import GroupedAUC, group_mean

    num_candidates = scores.labels_CK.shape[0]
    ne, auc = _ne_and_auc(scores.logits_CK, scores.labels_CK)
    gauc = GroupedAUC()
    gauc.update(scores.logits_CK, scores.labels_CK, scores.user_id_C)
    results = {}
    for column, (task, grouped) in enumerate(zip(tasks, gauc.compute(), strict=True)):
        labels_C1 = scores.labels_CK[:, column : column + 1]
        floor_ne, floor_auc = _floor_figures(floor[column], labels_C1)
        positives = int(labels_C1.sum())
        results[task] = TaskResult(
            ne=ne[column],
            auc=auc[column],
            gauc=_known(grouped.value),
            positives=positives,
            base_rate=positives / num_candidates,
            num_candidates=num_candidates,
            gauc_users=grouped.num_groups,
            gauc_users_skipped=grouped.num_skipped,
            floor_ne=floor_ne,
            floor_auc=floor_auc,
        )
    task_ne = {task: result.ne for task, result in results.items()}
    task_floor = {task: result.floor_ne for task, result in results.items()}
    return Evaluation(
        tasks=results,
        c_ne=group_mean(task_ne, groups.get("consumption", ())),
        e_ne=group_mean(task_ne, groups.get("engagement", ())),
        floor_c_ne=group_mean(task_floor, groups.get("consumption", ())),
        floor_e_ne=group_mean(task_floor, groups.get("engagement", ())),
        num_requests=scores.num_requests,
        num_candidates=num_candidates,
        cut_ms=cut_ms,
    )


def _floor_figures(logits_C: np.ndarray | None, labels_C1: Tensor) -> tuple[float | None, float | None]:
    if logits_C is None:
        return None, None
    ne, auc = _ne_and_auc(torch.from_numpy(logits_C)[:, None], labels_C1)
    return ne[0], auc[0]


def _ne_and_auc(logits_CK: Tensor, labels_CK: Tensor) -> tuple[list[float | None], list[float | None]]:
    from model.metrics import AUC, NormalizedEntropy

    ne, auc = NormalizedEntropy(labels_CK.shape[1]), AUC()
    ne.update(logits_CK, labels_CK)
    auc.update(logits_CK, labels_CK)
    values = (metric.compute().reshape(-1).tolist() for metric in (ne, auc))  # one task alone computes to a scalar
    ne_values, auc_values = ([_known(value) for value in task_values] for task_values in values)
    return ne_values, auc_values


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
