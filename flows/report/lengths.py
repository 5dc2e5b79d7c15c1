"""How long the streams are, and how much history a request sees."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from features.dataset import Shard, StreamsDataset

MAX_SHARDS = 16


@dataclass(frozen=True)
class LengthShares:
    """Shares by length class: 0, 1, 2-3, 4-7, ...

    Attributes:
        labels: names of the classes, shortest first.
        users: share of the users whose stream is that long.
        requests: share of the requests whose history is that long.
        median_user, median_request: median lengths.
        num_shards: shards that were read, of all.
    """

    labels: tuple[str, ...]
    users: tuple[float, ...]
    requests: tuple[float, ...]
    median_user: float
    median_request: float
    num_shards: int


def length_class(lengths: np.ndarray) -> np.ndarray:
    """0 for an empty stream, otherwise 1 + floor(log2(length)), exact for any length."""
    return np.frexp(lengths.astype(np.float64))[1].astype(np.int64)


def class_label(index: int) -> str:
    """Name of a length class."""
    low, high = 2 ** (index - 1), 2**index - 1
    return str(index) if index < 2 else f"{low:,}–{high:,}"


def measure_lengths(dataset: StreamsDataset) -> dict[str, LengthShares]:
    """Length shares per stream, from at most MAX_SHARDS shards (users are spread over shards by a hash)."""
    shards = dataset.shards[:: -(-len(dataset.shards) // MAX_SHARDS)]
    return {stream: _shares(shards, stream) for stream in dataset.manifest.spec.streams}


def _shares(shards: tuple[Shard, ...], stream: str) -> LengthShares:
    users, requests = [], []
    for shard in shards:
        lengths = np.asarray(shard.users.list(f"{stream}.item").lengths, np.int64)
        users.append(lengths)
        requests.append(lengths[shard.requests.column("user_row")] - shard.requests.column(f"{stream}_start"))
    user_lengths, request_lengths = np.concatenate(users), np.concatenate(requests)
    longest = max(user_lengths.max(initial=0), request_lengths.max(initial=0))
    num_classes = int(length_class(np.array([longest]))[0]) + 1
    return LengthShares(
        labels=tuple(class_label(index) for index in range(num_classes)),
        users=_class_shares(user_lengths, num_classes),
        requests=_class_shares(request_lengths, num_classes),
        median_user=float(np.median(user_lengths)) if len(user_lengths) else 0.0,
        median_request=float(np.median(request_lengths)) if len(request_lengths) else 0.0,
        num_shards=len(shards),
    )


def _class_shares(lengths: np.ndarray, num_classes: int) -> tuple[float, ...]:
    counts = np.bincount(length_class(lengths), minlength=num_classes)
    return tuple((counts / max(len(lengths), 1)).tolist())
