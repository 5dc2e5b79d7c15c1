"""The floor: logistic regression on the smoothed rates of surface, item and user, fitted on training impressions.

A ranking model that does not beat it has learned nothing from histories. Rates of the rows that are fitted leave the
row's own label out; otherwise rare actions would overfit and the floor would be too easy to beat.

Legend: C candidates, K tasks, X rate features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression

from features.dataset import Shard, StreamsDataset
from model.gather import pick, ragged_arange
from model.training.sampler import index_requests

_MAX_FIT_ROWS = 1_000_000


@dataclass(frozen=True)
class Impressions:
    """All candidates of one split, ascending by request_id.

    Attributes:
        keys: (C,) integer columns that have a rate: raw user and item ids (so that ids without a vocabulary row count
            too) and, where candidates carry it, the surface.
        action_mask_C: (C,) int64 labels.
    """

    keys: tuple[np.ndarray, ...]
    action_mask_C: np.ndarray

    def labels(self, bit: int) -> np.ndarray:
        """(C,) float64, 0 or 1."""
        return (self.action_mask_C >> bit & 1).astype(np.float64)


def read_impressions(dataset: StreamsDataset, split: int) -> Impressions:
    """Reads what the floor needs of a split from the shards."""
    index = index_requests(dataset, split)
    offsets = [shard.requests.list("candidate.item_id").offsets for shard in dataset.shards]
    begin_R = pick(offsets, index.shard_R, index.row_R)
    length_R = pick(offsets, index.shard_R, index.row_R + 1) - begin_R
    shard_C, row_C = np.repeat(index.shard_R, length_R), ragged_arange(begin_R, length_R)

    def column(name: str) -> np.ndarray:
        values = [shard.requests.list(f"candidate.{name}").values for shard in dataset.shards]
        return pick(values, shard_C, row_C).astype(np.int64)

    user_R = pick([_user_of_request(shard) for shard in dataset.shards], index.shard_R, index.row_R)
    keys = [np.repeat(user_R, length_R), column("item_id")]
    if any(field.name == "surface" for field in dataset.manifest.spec.candidate_contexts):
        keys.append(column("ctx_surface"))
    return Impressions(tuple(keys), column("action_mask"))


def _user_of_request(shard: Shard) -> np.ndarray:
    return shard.users.column("user_id")[shard.requests.column("user_row")]


@dataclass(frozen=True)
class Coded:
    """A key as dense codes: 0..num_codes - 2 were seen in training, the last one stands for everything else."""

    train_C: np.ndarray
    evaluation_C: np.ndarray
    num_codes: int


def encode(train_C: np.ndarray, evaluation_C: np.ndarray) -> Coded:
    """Numbers the training values and finds them among the evaluation's."""
    seen, codes_C = np.unique(train_C, return_inverse=True)
    position_C = np.minimum(np.searchsorted(seen, evaluation_C), seen.size - 1)
    return Coded(codes_C, np.where(seen[position_C] == evaluation_C, position_C, seen.size), seen.size + 1)


def smoothed_rates(coded: Coded, labels_C: np.ndarray, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """Rates of one key, pulled towards the base rate as `smoothing` further rows would.

    Returns:
        The training rows' rates, each without its own row, and the evaluation rows' rates from all training rows.
    """
    count = np.bincount(coded.train_C, minlength=coded.num_codes)
    positives = np.bincount(coded.train_C, labels_C, minlength=coded.num_codes)
    prior = smoothing * labels_C.mean()
    # without the row itself, the prior's share included: otherwise the label shows in the rate
    own_prior_C = smoothing * (labels_C.sum() - labels_C) / (labels_C.size - 1)
    train_C = (positives[coded.train_C] - labels_C + own_prior_C) / (count[coded.train_C] - 1 + smoothing)
    return train_C, ((positives + prior) / (count + smoothing))[coded.evaluation_C]


def floor_logits(
    train: Impressions, evaluation: Impressions, bits: Sequence[int], *, smoothing: float
) -> list[np.ndarray | None]:
    """Fits one regression per task and scores the evaluation rows.

    Args:
        train: fitted on.
        evaluation: scored.
        bits: action bit of each task.
        smoothing: rows of prior in a rate.

    Returns:
        (C,) float64 logits per task; None where the training labels are all equal, nothing can be fitted then.
    """
    if not train.action_mask_C.size:
        return [None for _ in bits]
    coded = [encode(a, b) for a, b in zip(train.keys, evaluation.keys, strict=True)]
    return [_task_logits(coded, train.labels(bit), smoothing) for bit in bits]


def _task_logits(coded: Sequence[Coded], labels_C: np.ndarray, smoothing: float) -> np.ndarray | None:
    chosen = slice(None, None, -(-labels_C.size // _MAX_FIT_ROWS))
    # a lone positive or negative leaves a prior of 0 or 1, whose logit is infinite
    if min(labels_C[chosen].sum(), (1 - labels_C[chosen]).sum()) < 2:
        return None
    rates = [smoothed_rates(column, labels_C, smoothing) for column in coded]
    train_CX, evaluation_CX = (np.stack([_logit(rate[part]) for rate in rates], axis=1) for part in (0, 1))
    regression = LogisticRegression().fit(train_CX[chosen], labels_C[chosen])
    return regression.decision_function(evaluation_CX)


def _logit(rate: np.ndarray) -> np.ndarray:
    return np.log(rate) - np.log1p(-rate)
