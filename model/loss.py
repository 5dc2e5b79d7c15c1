"""The training loss: cross-entropy per task, and the watch-ratio regression when it is configured."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from features.spec import FeatureSpec
from model.batch import Candidates
from model.config import ModelConfig
from model.heads import Predictions

MAX_WATCH_RATIO = 3.0


def entropy(rate: Tensor) -> Tensor:
    """Cross-entropy (nats) of always predicting `rate` when that is the share of positives; 0 at 0 and 1."""
    return torch.special.entr(rate) + torch.special.entr(1 - rate)


@dataclass(frozen=True)
class Loss:
    """The loss of a batch.

    Attributes:
        total: scalar to minimise: the mean of the tasks' cross-entropies, so its scale and its gradient's do not grow
            with the number of tasks, plus watch_ratio_weight x the regression's.
        task_K: (K,) detached, each task's mean cross-entropy over the candidates.
        watch_ratio: detached scalar, the regression's mean squared error, or None.
        positives_K: (K,) candidates of this rank with each task's action.
    """

    total: Tensor
    task_K: Tensor
    watch_ratio: Tensor | None
    positives_K: Tensor


@dataclass(frozen=True)
class LossCounts:
    """What a step's means are over: the candidates of all ranks, and those of them whose watch ratio is known."""

    num_candidates: int
    num_watch_ratios: int


def ranking_loss(
    predictions: Predictions,
    candidates: Candidates,
    config: ModelConfig,
    spec: FeatureSpec,
    *,
    counts: LossCounts | None = None,
) -> Loss:
    """The loss of predictions against the candidates' labels; 0 when there are no candidates.

    Args:
        predictions: for the candidates.
        candidates: of this rank.
        config: of the model.
        spec: of the dataset.
        counts: of all ranks' candidates; the sum over ranks of their losses is then the loss of the whole batch.
    """
    labels_CK = task_labels(candidates.action_mask_C, config.heads.tasks, spec.actions)
    entropy_CK = binary_cross_entropy_with_logits(predictions.logits_CK, labels_CK, reduction="none")
    task_K = entropy_CK.sum(dim=0) / max(counts.num_candidates if counts else labels_CK.shape[0], 1)
    total = task_K.mean()
    watch_ratio = None
    if predictions.watch_ratio_C is not None:
        watch_ratio = watch_ratio_error(
            predictions.watch_ratio_C, candidates.watch_ratio_C, count=counts.num_watch_ratios if counts else None
        )
        total = total + config.heads.watch_ratio_weight * watch_ratio
        watch_ratio = watch_ratio.detach()
    return Loss(total, task_K.detach(), watch_ratio, labels_CK.sum(dim=0))


def task_labels(action_mask_C: Tensor, tasks: tuple[str, ...], actions: tuple[str, ...]) -> Tensor:
    """(C, K) float32 of 0 and 1: whether the candidate has each task's action.

    Args:
        action_mask_C: (C,) int64, bit i is actions[i].
        tasks: the columns.
        actions: FeatureSpec.actions.
    """
    # Shifts by numbers of the host: a tensor of them would have to be copied to a GPU, which stops the step.
    return torch.stack([(action_mask_C >> actions.index(task)) & 1 for task in tasks], dim=1).float()


def watch_ratio_error(predicted_C: Tensor, watch_ratio_C: Tensor, *, count: int | None = None) -> Tensor:
    """Mean squared error against the watch ratio clipped to [0, MAX_WATCH_RATIO], where it is known; 0 without any.

    `count` replaces the number of known ratios, when these are only a part of them.
    """
    known_C = ~watch_ratio_C.isnan()
    error_C = predicted_C - watch_ratio_C.nan_to_num(nan=0.0).clamp(0.0, MAX_WATCH_RATIO)
    divisor = known_C.sum().clamp(min=1) if count is None else max(count, 1)
    return (error_C.square() * known_C).sum() / divisor
