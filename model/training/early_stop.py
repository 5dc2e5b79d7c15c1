"""Early stop: training ends when NE on the newest training requests no longer falls."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from features.dataset import StreamsDataset
from features.errors import DataError
from model.evaluation import score_candidates
from model.ranker import Ranker
from model.reader import Reader
from model.training.distributed import World
from model.training.sampler import RequestIndex, request_times
from model.training.train_config import EarlyStopConfig


@dataclass(frozen=True)
class HeldOut:
    """The training requests in two parts: `train` is trained on, `newest` judges."""

    train: RequestIndex
    newest: RequestIndex


def hold_out(dataset: StreamsDataset, index: RequestIndex, share: float) -> HeldOut:
    """Splits off the newest requests.

    Raises:
        DataError: one part would be empty.
    """
    count = round(share * index.num_requests)
    if not 0 < count < index.num_requests:
        raise DataError(
            f"params.yaml: train.early_stop.holdout_share: {share} of {index.num_requests} training requests leaves "
            "nothing on one side"
        )
    newest_R = np.zeros(index.num_requests, bool)
    newest_R[np.argsort(request_times(dataset, index), kind="stable")[-count:]] = True
    return HeldOut(train=index.chosen(~newest_R), newest=index.chosen(newest_R))


class EarlyStop:
    """Checks NE every `every_steps` steps and knows when to stop.

    Attributes:
        history: the mean NE over the tasks of every check so far.
    """

    def __init__(self, config: EarlyStopConfig, reader: Reader, world: World) -> None:
        self.history: list[float] = []
        self._config = config
        self._reader = reader
        self._world = world

    @property
    def stopped(self) -> bool:
        """Whether the last `patience` checks brought no improvement over the best one before them."""
        return stops(self.history, patience=self._config.patience, min_improvement=self._config.min_improvement)

    def is_due(self, step: int) -> bool:
        """Whether to check after this step."""
        return step % self._config.every_steps == 0

    def check(self, ranker: Ranker, device: torch.device) -> float:
        """Scores the held-out requests on all ranks; returns the mean NE over the tasks that have both labels."""
        # torchmetrics loads for a second, which a training without checks does not need.
        from model.metrics import NormalizedEntropy

        scores = score_candidates(ranker, self._reader, device, world=self._world)
        ne = NormalizedEntropy(scores.labels_CK.shape[1])
        ne.update(scores.logits_CK, scores.labels_CK)
        self.history.append(float(ne.compute().nanmean()))
        return self.history[-1]


def stops(history: list[float], *, patience: int, min_improvement: float) -> bool:
    """Whether `patience` checks have gone by since the last one that improved on all before by `min_improvement`."""
    best, since = math.inf, 0
    for value in history:
        if value < best - min_improvement:
            best, since = value, 0
        else:
            since += 1
    return since >= patience
