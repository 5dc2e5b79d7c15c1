"""A 128-bit checksum of a dataset's content that does not depend on how the users are sharded.

Every row becomes two independent 64-bit digests. A list column enters a row's digest as the sum of value x key of
its position (multilinear hashing), so the order inside a list counts; a request enters with its user's raw id and
its ordinal among that user's requests, so their order counts too. Row digests are added up, which leaves out where
a row was stored.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from features.hashing import mix64
from features.jagged import Jagged

_NUM_LANES = 2
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Fingerprint:
    """Sums of row digests modulo 2^64, one per lane; fingerprints of disjoint sets of users add up."""

    lanes: tuple[int, ...] = (0,) * _NUM_LANES

    def __add__(self, other: Fingerprint) -> Fingerprint:
        return Fingerprint(tuple((a + b) & _MASK for a, b in zip(self.lanes, other.lanes, strict=True)))

    @property
    def hex(self) -> str:
        """32 hexadecimal digits."""
        return "".join(f"{lane:016x}" for lane in self.lanes)


def fingerprint(users: pa.Table, requests: pa.Table) -> Fingerprint:
    """Checksum of all columns of whole users and of all their requests.

    Args:
        users: schema `users_schema`.
        requests: schema `requests_schema`; `user_row` points into `users`, a user's requests are adjacent.
    """
    user_row = requests.column("user_row").to_numpy()
    keys = np.stack([users.column("user_id").to_numpy()[user_row], _ordinals(user_row)])
    lanes = []
    for lane in range(_NUM_LANES):
        digest_users = _digest_rows(users, _seed("users", lane), skip=())
        digest_requests = _digest_rows(requests, _seed("requests", lane), skip=("user_row",))
        for key in keys:
            digest_requests = mix64(digest_requests ^ mix64(key))
        lanes.append(int(digest_users.sum()) + int(digest_requests.sum()) & _MASK)
    return Fingerprint(tuple(lanes))


def _digest_rows(table: pa.Table, seed: int, skip: tuple[str, ...]) -> np.ndarray:
    """(rows,) uint64."""
    digest = np.full(table.num_rows, seed, np.uint64)
    positions = _PositionKeys(seed)
    for name in table.column_names:
        if name in skip:
            continue
        array = table.column(name).combine_chunks()
        column_seed = np.uint64(_seed(name, seed))
        if pa.types.is_large_list(array.type):
            jagged = Jagged.from_arrow(array, name)
            digest = mix64(digest ^ mix64(jagged.lengths ^ column_seed.astype(np.int64)))
            values = _weighted_sums(jagged, positions.of(jagged))
        else:
            values = _bits(array.to_numpy())
        digest = mix64(digest ^ mix64(values ^ column_seed))
    return digest


class _PositionKeys:
    """The key of each value's position in its row; columns of one stream share their offsets, so the last is kept."""

    def __init__(self, seed: int) -> None:
        self._seed = np.uint64(seed)
        self._offsets = np.zeros(1, np.int64)
        self._keys = np.zeros(0, np.uint64)

    def of(self, jagged: Jagged) -> np.ndarray:
        if not np.array_equal(jagged.offsets, self._offsets):
            self._offsets = jagged.offsets
            lengths = jagged.lengths
            table = mix64(np.arange(lengths.max(initial=0), dtype=np.uint64) ^ self._seed) | np.uint64(1)
            self._keys = table[np.arange(len(jagged.values)) - np.repeat(jagged.offsets[:-1], lengths)]
        return self._keys


def _weighted_sums(jagged: Jagged, keys: np.ndarray) -> np.ndarray:
    """(B,) uint64 sums of value x key per row, modulo 2^64."""
    sums = np.zeros(len(jagged), np.uint64)
    filled = jagged.lengths > 0
    if filled.any():
        sums[filled] = np.add.reduceat(_bits(jagged.values) * keys, jagged.offsets[:-1][filled])
    return sums


def _bits(values: np.ndarray) -> np.ndarray:
    """(N,) uint64 that tell the values apart: integers as they are, floats by their bit pattern."""
    if values.dtype == np.float32:
        values = values.view(np.uint32)
    return values.astype(np.uint64)


def _ordinals(runs: np.ndarray) -> np.ndarray:
    """(N,) number of each element within its run of equal elements."""
    index = np.arange(len(runs))
    starts = np.flatnonzero(np.diff(runs, prepend=-1))
    return index - np.repeat(starts, np.diff(starts, append=len(runs)))


def _seed(name: str, salt: int) -> int:
    return int.from_bytes(hashlib.blake2b(f"{salt} {name}".encode(), digest_size=8).digest(), "little")
