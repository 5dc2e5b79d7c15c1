"""The Python interface to a bundle: `Scorer.load(path).score(request)`.

scorer = Scorer.load("models/bundle")
users = UserStreams.open("data/streams", scorer.bundle)
request = ScoreRequest(user_id=7, request_ms=1_652_000_000_000, item_ids=[3, 14, 15], history=users.history(7))
scores = scorer.score(request)
scores.probability_CK[:, scores.tasks.index("is_click")]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from features.errors import DataError
from model.batch import Batch
from model.heads import Predictions
from model.serving.bundle import TABLES, WEIGHTS, Bundle, open_bundle
from model.serving.score_config import ScoreConfig
from model.serving.score_encode import CandidateEncoder, RawCandidates
from model.serving.scorer_batch import UserHistory, batch_of
from model.serving.scorer_model import ServedModel

DEFAULTS = ScoreConfig(
    device="cpu",
    num_threads=1,
    impl="reference",
    compute="fp32",
    placement="host",
    tokens_per_batch=16384,
    micro_batch_size=512,
)


@dataclass(frozen=True)
class ScoreRequest:
    """A user, a moment, and the items to score.

    Attributes:
        user_id: raw id.
        request_ms: now, UTC milliseconds; events at or after it are not history.
        item_ids: raw ids of the C candidates, in any order, repeated or unknown ones too.
        history: the user's streams, from `UserStreams.history`; None for a user without events.
        surfaces: raw surface of each candidate, None where unknown; None if all are.
        durations_ms: length of each candidate, None where unknown; None if all are.
        request_id: comes back with the scores.
    """

    user_id: int
    request_ms: int
    item_ids: Sequence[int]
    history: UserHistory | None = None
    surfaces: Sequence[int | None] | None = None
    durations_ms: Sequence[float | None] | None = None
    request_id: int = 0


@dataclass(frozen=True)
class RequestScores:
    """What the model says about a request's C candidates, in their order.

    Attributes:
        request_id, user_id: of the request.
        item_id_C: (C,) int64 raw ids.
        tasks: names of the K columns.
        probability_CK: (C, K) float32.
        watch_ratio_C: (C,) float32, or None of a model without that head.
        user_unknown: the vocabulary has no row for the user.
        item_unknown_C: (C,) bool, the same of the items.
    """

    request_id: int
    user_id: int
    item_id_C: np.ndarray
    tasks: tuple[str, ...]
    probability_CK: np.ndarray
    watch_ratio_C: np.ndarray | None
    user_unknown: bool
    item_unknown_C: np.ndarray


class Scorer:
    """A bundle in memory, ready to score; threads may share it."""

    def __init__(self, bundle: Bundle, config: ScoreConfig) -> None:
        """Loads a bundle; `Scorer.load` opens it first."""
        self.bundle, self.config = bundle, config
        contents = bundle.contents
        self.encoder = CandidateEncoder(bundle)
        self.model = ServedModel(
            config.serving(contents.model),
            contents.spec,
            contents.tables,
            device=config.torch_device(),
            placement=config.placement,
            compute=config.compute,
        )
        self.model.load(bundle.tensors(WEIGHTS), list(bundle.tensors(TABLES).values()))

    @classmethod
    def load(cls, path: Path | str, config: ScoreConfig = DEFAULTS, *, expected_name: str | None = None) -> Self:
        """Opens and loads a bundle.

        Args:
            path: a bundle, or the folder that the stage `export` writes.
            config: where and how to compute; the CPU unless given.
            expected_name: refuse every other bundle.

        Raises:
            DataError: names what is missing, damaged or does not belong together.
        """
        return cls(open_bundle(Path(path), expected_name=expected_name), config)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the columns of the probabilities."""
        return self.bundle.contents.model.heads.tasks

    def score(self, request: ScoreRequest) -> RequestScores:
        """Scores one request; without candidates there are no rows.

        Raises:
            DataError: says what of the request makes no sense.
        """
        raw = _raw_candidates(request)
        encoded = self.encoder.encode(raw)
        batch, user = batch_of(
            request.request_id,
            request.user_id,
            request.request_ms,
            history=request.history,
            candidates=encoded,
            contents=self.bundle.contents,
        )
        predictions = self.predict(batch)
        watch_ratio_C = predictions.watch_ratio_C
        return RequestScores(
            request_id=request.request_id,
            user_id=request.user_id,
            item_id_C=raw.item_id_C,
            tasks=self.tasks,
            probability_CK=probabilities(predictions).numpy(),
            watch_ratio_C=None if watch_ratio_C is None else watch_ratio_C.cpu().numpy(),
            user_unknown=user.is_unknown,
            item_unknown_C=encoded.unknown_items,
        )

    def predict(self, batch: Batch) -> Predictions:
        """Predictions for the candidates of a batch as the reader delivers it."""
        return self.model(batch, micro_batch_size=self.config.micro_batch_size)


def probabilities(predictions: Predictions) -> Tensor:
    """(C, K) float32 on the CPU."""
    return torch.sigmoid(predictions.logits_CK.float()).cpu()


def _raw_candidates(request: ScoreRequest) -> RawCandidates:
    if request.request_ms <= 0:
        raise DataError(f"request {request.request_id}: request_ms is {request.request_ms}, expected UTC milliseconds")
    try:
        item_id_C = np.asarray(request.item_ids, dtype=object if len(request.item_ids) == 0 else None)
        item_id_C = item_id_C.astype(np.int64, casting="unsafe" if not len(item_id_C) else "same_kind")
    except (TypeError, ValueError, OverflowError):
        raise DataError(f"request {request.request_id}: item_ids must be whole numbers of 64 bits") from None
    if item_id_C.ndim != 1:
        raise DataError(f"request {request.request_id}: item_ids must be one list, not {item_id_C.ndim} dimensions")
    count = item_id_C.size
    return RawCandidates(
        item_id_C=item_id_C,
        request_ms_C=np.full(count, request.request_ms, np.int64),
        surface_C=_floats(request, "surfaces", request.surfaces, count),
        duration_ms_C=_floats(request, "durations_ms", request.durations_ms, count),
    )


def _floats(request: ScoreRequest, name: str, values: Sequence[float | None] | None, count: int) -> np.ndarray:
    """(C,) float64 with NaN for None."""
    if values is None:
        return np.full(count, np.nan)
    if len(values) != count:
        raise DataError(f"request {request.request_id}: {len(values)} {name} for {count} item_ids")
    return np.array([np.nan if value is None else value for value in values], np.float64)
