"""Normalised entropy, AUC and per-user AUC of several tasks at once, exact over everything they were shown.

Undefined values (a task whose labels are all equal) are NaN; callers that write files turn them into null.
Legend: C candidates, K tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from model.loss import entropy


class NormalizedEntropy(Metric):
    """Mean cross-entropy over the entropy of the shown base rate, per task; below 1 beats predicting the base rate."""

    full_state_update = False
    loss_K: Tensor
    positives_K: Tensor
    count: Tensor

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.set_dtype(torch.float64)
        self.add_state("loss_K", torch.zeros(num_tasks, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("positives_K", torch.zeros(num_tasks, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, logits_CK: Tensor, labels_CK: Tensor) -> None:
        """Adds logits and 0/1 labels."""
        loss_CK = binary_cross_entropy_with_logits(logits_CK.double(), labels_CK.double(), reduction="none")
        self.loss_K += loss_CK.sum(0)
        self.positives_K += labels_CK.sum(0, dtype=torch.int64)
        self.count += logits_CK.shape[0]

    def compute(self) -> Tensor:
        """(K,) float64; NaN for a task whose labels are all equal."""
        entropy_K = entropy(self.positives_K.double() / self.count)
        return torch.where(entropy_K > 0, self.loss_K / self.count / entropy_K, torch.nan)


def rank_auc(scores_C: np.ndarray, labels_C: np.ndarray) -> float:
    """Share of (positive, negative) pairs in the right order, ties counting half; NaN when there is no pair."""
    return grouped_auc(scores_C, labels_C, np.zeros(scores_C.size, np.int64)).value


class GroupedAUCValue(NamedTuple):
    """AUC averaged over groups, weighted by group size; groups with one class are skipped."""

    value: float
    num_groups: int
    num_skipped: int


def grouped_auc(scores_C: np.ndarray, labels_C: np.ndarray, groups_C: np.ndarray) -> GroupedAUCValue:
    """Exact AUC per group by mid-ranks, averaged over the groups that have both classes.

    Args:
        scores_C: (C,) any real scores.
        labels_C: (C,) bool or 0/1.
        groups_C: (C,) integer group of each row.
    """
    order = np.lexsort((scores_C, groups_C))
    scores, groups, positive = scores_C[order], groups_C[order], labels_C[order].astype(bool)
    if not scores.size:
        return GroupedAUCValue(float("nan"), 0, 0)
    new_group = np.concatenate([[True], groups[1:] != groups[:-1]])
    new_tie = new_group | np.concatenate([[True], scores[1:] != scores[:-1]])
    group, tie = np.cumsum(new_group) - 1, np.cumsum(new_tie) - 1
    tie_start = np.append(np.flatnonzero(new_tie), scores.size)
    # zero-based mid-rank over all rows, made relative to the row's group
    rank = ((tie_start[:-1] + tie_start[1:] - 1) / 2)[tie] - np.flatnonzero(new_group)[group]
    size_G = np.bincount(group)
    positives_G = np.bincount(group, positive).astype(np.int64)
    rank_sum_G = np.bincount(group, np.where(positive, rank, 0.0))
    pairs_G = positives_G * (size_G - positives_G)
    usable = pairs_G > 0
    if not usable.any():
        return GroupedAUCValue(float("nan"), 0, size_G.size)
    won_G = rank_sum_G[usable] - positives_G[usable] * (positives_G[usable] - 1) / 2
    value = np.average(won_G / pairs_G[usable], weights=size_G[usable])
    return GroupedAUCValue(float(value), int(usable.sum()), int((~usable).sum()))


class _Stored(Metric):
    """Keeps every score and label: an exact AUC needs them all."""

    full_state_update = False
    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", [], dist_reduce_fx="cat")
        self.add_state("labels", [], dist_reduce_fx="cat")

    def _columns(self) -> list[tuple[np.ndarray, np.ndarray]]:
        scores_CK = dim_zero_cat(self.scores).cpu().numpy()
        labels_CK = dim_zero_cat(self.labels).cpu().numpy()
        return list(zip(scores_CK.T, labels_CK.T, strict=True))


class AUC(_Stored):
    """Global AUC per task."""

    def update(self, logits_CK: Tensor, labels_CK: Tensor) -> None:
        """Adds logits and 0/1 labels."""
        self.scores.append(logits_CK.detach().float())
        self.labels.append(labels_CK.bool())

    def compute(self) -> Tensor:
        """(K,) float64; NaN for a task whose labels are all equal."""
        values = [rank_auc(scores_C, labels_C) for scores_C, labels_C in self._columns()]
        return torch.tensor(values, dtype=torch.float64)


class GroupedAUC(_Stored):
    """AUC within each user, weighted by the user's number of candidates."""

    groups: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("groups", [], dist_reduce_fx="cat")

    def update(self, logits_CK: Tensor, labels_CK: Tensor, groups_C: Tensor) -> None:
        """Adds logits, 0/1 labels and the raw user id of every candidate."""
        self.scores.append(logits_CK.detach().float())
        self.labels.append(labels_CK.bool())
        self.groups.append(groups_C)

    def compute(self) -> list[GroupedAUCValue]:
        """One value per task, with the users that counted and those that were skipped."""
        groups_C = dim_zero_cat(self.groups).cpu().numpy()
        return [grouped_auc(scores_C, labels_C, groups_C) for scores_C, labels_C in self._columns()]


def group_mean(values: Mapping[str, float | None], tasks: Sequence[str]) -> float | None:
    """Mean over those tasks that have a value: C-NE and E-NE. None when none has."""
    known = [value for task in tasks if (value := values.get(task)) is not None]
    return sum(known) / len(known) if known else None
