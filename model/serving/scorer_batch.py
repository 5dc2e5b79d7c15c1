"""From a request and a user's streams to the batch that the model reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from features.dataset import StreamsDataset, open_dataset
from features.errors import DataError
from features.hashing import shard_of
from features.spec import FeatureSpec
from model.batch import Batch, Candidates, UIHStream
from model.gather import ShardColumns, open_columns
from model.serving.bundle import Bundle, Contents
from model.serving.score_encode import EncodedCandidates, UserCodes
from model.stage import max_lengths


@dataclass(frozen=True)
class StreamEvents:
    """One stream of a user as codes, newest first; columns as in the streams dataset.

    Attributes:
        items: FeatureSpec.item_fields, one (T,) array each.
        timestamp_ms: (T,) int64, never ascending.
        action_mask, intensity: (T,).
        contexts: FeatureSpec.token_contexts, one (T,) array each.
    """

    items: tuple[np.ndarray, ...]
    timestamp_ms: np.ndarray
    action_mask: np.ndarray
    intensity: np.ndarray
    contexts: tuple[np.ndarray, ...]

    def before(self, request_ms: int, max_length: int) -> slice:
        """The newest events strictly older than a moment."""
        start = int(np.searchsorted(-self.timestamp_ms, -request_ms, side="right"))
        return slice(start, start + max_length)


@dataclass(frozen=True)
class UserHistory:
    """A user's codes and streams by name."""

    user: UserCodes
    streams: Mapping[str, StreamEvents]


class UserStreams:
    """Users' streams in a streams dataset, by raw id; reads just what it is asked for."""

    def __init__(self, dataset: StreamsDataset) -> None:
        self._spec = dataset.manifest.spec
        self._shards = [open_columns(shard, self._spec) for shard in dataset.shards]

    @classmethod
    def open(cls, path: Path | str, bundle: Bundle) -> Self:
        """Opens data/streams for a bundle.

        Raises:
            DataError: the dataset is damaged, or was not built with the bundle's vocabulary and schema.
        """
        dataset = open_dataset(Path(path))
        bundle.check_dataset(dataset)
        return cls(dataset)

    def history(self, user_id: int) -> UserHistory | None:
        """A user's streams, None for a user without events."""
        columns = self._shards[int(shard_of(np.array([user_id]), len(self._shards))[0])]
        row = int(np.searchsorted(columns.user_id, user_id))
        if row == columns.user_id.size or columns.user_id[row] != user_id:
            return None
        return user_history(columns, row, self._spec)

    def busiest(self) -> tuple[int, UserHistory]:
        """The user with the most events of the first stream, to try things with.

        Raises:
            DataError: the dataset has no users.
        """
        longest = [(int(np.diff(columns.streams[0].offsets).max(initial=-1)), columns) for columns in self._shards]
        length, columns = max(longest, key=lambda pair: pair[0])
        if length < 0:
            raise DataError("the streams have no users")
        row = int(np.diff(columns.streams[0].offsets).argmax())
        return int(columns.user_id[row]), user_history(columns, row, self._spec)


def user_history(columns: ShardColumns, row: int, spec: FeatureSpec) -> UserHistory:
    """The user in a row of a shard; the arrays are views of the mapped file."""
    streams = {}
    for name, stream in zip(spec.streams, columns.streams, strict=True):
        part = slice(stream.offsets[row], stream.offsets[row + 1])
        timestamp_ms, intensity = (column[part] for column in stream.extra)
        streams[name] = StreamEvents(
            items=tuple(column[part] for column in stream.items),
            timestamp_ms=timestamp_ms,
            action_mask=stream.action_mask[part],
            intensity=intensity,
            contexts=tuple(column[part] for column in stream.contexts),
        )
    return UserHistory(UserCodes(np.array([field[row] for field in columns.user_fields], np.int32)), streams)


def batch_of(
    request_id: int,
    user_id: int,
    request_ms: int,
    *,
    history: UserHistory | None,
    candidates: EncodedCandidates,
    contents: Contents,
) -> tuple[Batch, UserCodes]:
    """A batch of one request, and its user's codes.

    Raises:
        DataError: the history lacks a stream or its columns do not fit.
    """
    spec = contents.spec
    user = history.user if history else UserCodes.unknown(len(spec.user_fields))
    lengths = max_lengths(contents.model, spec)
    streams = []
    for name, max_length in zip(spec.streams, lengths, strict=True):
        if history is not None and name not in history.streams:
            raise DataError(f"request {request_id}: the history has no stream '{name}'")
        events = history.streams[name] if history else _no_events(spec)
        streams.append(_stream(events, events.before(request_ms, max_length)))
    count = candidates.items[0].size
    batch = Batch(
        request_id_B=torch.tensor([request_id]),
        user_id_B=torch.tensor([user_id]),
        request_ms_B=torch.tensor([request_ms]),
        users_BF=torch.from_numpy(user.fields[None].astype(np.int32)),
        streams=tuple(streams),
        candidates=Candidates(
            offsets_B1=torch.tensor([0, count]),
            items_CF=_columns(candidates.items),
            contexts_CX=_columns(candidates.contexts, count),
            action_mask_C=torch.zeros(count, dtype=torch.int64),
            watch_ratio_C=torch.full((count,), torch.nan),
        ),
    )
    return batch, user


def _stream(events: StreamEvents, part: slice) -> UIHStream:
    timestamp_ms = events.timestamp_ms[part]
    return UIHStream(
        offsets_B1=torch.tensor([0, timestamp_ms.size]),
        lengths=(timestamp_ms.size,),
        items_TF=_columns(tuple(column[part] for column in events.items)),
        timestamp_ms_T=_tensor(timestamp_ms, np.int64),
        action_mask_T=_tensor(events.action_mask[part], np.int64),
        intensity_T=_tensor(events.intensity[part], np.int32),
        contexts_TX=_columns(tuple(column[part] for column in events.contexts), timestamp_ms.size),
    )


def _no_events(spec: FeatureSpec) -> StreamEvents:
    none = np.empty(0, np.int64)
    return StreamEvents(
        items=(none,) * len(spec.item_fields),
        timestamp_ms=none,
        action_mask=none,
        intensity=none,
        contexts=(none,) * len(spec.token_contexts),
    )


def _tensor(values: np.ndarray, dtype: type) -> Tensor:
    return torch.from_numpy(np.array(values, dtype))


def _columns(columns: tuple[np.ndarray, ...], count: int = 0) -> Tensor:
    """(N, F) int32; `count` rows of nothing when there are no columns."""
    if not columns:
        return torch.empty(count, 0, dtype=torch.int32)
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.int32))
