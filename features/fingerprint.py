"""A 128-bit checksum of a dataset's content that does not depend on how the users are sharded.

Every row becomes two independent 64-bit digests. In a group of list columns (a stream's, or the candidates') each
position gets the mixed sum of value x key of its column, and the row the sum of those x key of their position, so
the order inside a list counts. A request enters with its user's raw id and its ordinal among that user's requests,
so their order counts too. Row digests are added up, which leaves out where a row was stored.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from features.errors import DataError
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
    user_id = users.column("user_id").to_numpy()[user_row]
    owner = mix64(mix64(user_id) ^ mix64(_ordinals(user_row)))
    digest_users = _digest_rows(users, "users")
    digest_requests = [
        mix64(digest ^ owner) for digest in _digest_rows(requests.drop_columns(["user_row"]), "requests")
    ]
    lanes = (
        int(of_users.sum()) + int(of_requests.sum()) & _MASK
        for of_users, of_requests in zip(digest_users, digest_requests, strict=True)
    )
    return Fingerprint(tuple(lanes))


def _digest_rows(table: pa.Table, salt: str) -> list[np.ndarray]:
    """(rows,) uint64 for each lane."""
    digests = [np.full(table.num_rows, _key(salt, lane), np.uint64) for lane in range(_NUM_LANES)]
    groups: dict[str, list[str]] = {}
    for name in table.column_names:
        if pa.types.is_large_list(table.schema.field(name).type):
            groups.setdefault(name.partition(".")[0], []).append(name)
        else:
            _absorb(digests, name, _bits(table.column(name).to_numpy()))
    for group, names in groups.items():
        columns = [Jagged.from_arrow(table.column(name).combine_chunks(), name) for name in names]
        lengths = columns[0].lengths
        if any(not np.array_equal(column.offsets, columns[0].offsets) for column in columns):
            raise DataError(f"columns of '{group}' differ in length")
        _absorb(digests, group, lengths.astype(np.uint64))
        for lane, sums in enumerate(_sums(columns, names)):
            digests[lane] = mix64(digests[lane] ^ sums)
    return digests


def _absorb(digests: list[np.ndarray], name: str, bits: np.ndarray) -> None:
    for lane in range(_NUM_LANES):
        digests[lane] = mix64(digests[lane] ^ mix64(bits ^ _key(name, lane)))


def _sums(columns: list[Jagged], names: list[str]) -> list[np.ndarray]:
    """(rows,) uint64 for each lane, of list columns with the same offsets."""
    offsets, lengths = columns[0].offsets, columns[0].lengths
    tokens = [np.zeros(len(columns[0].values), np.uint64) for _ in range(_NUM_LANES)]
    for column, name in zip(columns, names, strict=True):
        bits = _bits(column.values)
        for lane in range(_NUM_LANES):
            tokens[lane] += bits * (_key(name, lane) | np.uint64(1))
    position = np.arange(len(tokens[0])) - np.repeat(offsets[:-1], lengths)
    filled = lengths > 0
    sums = []
    for lane in range(_NUM_LANES):
        keys = mix64(np.arange(lengths.max(initial=0), dtype=np.uint64) ^ _key("position", lane)) | np.uint64(1)
        of_rows = np.zeros(len(lengths), np.uint64)
        if filled.any():
            of_rows[filled] = np.add.reduceat(mix64(tokens[lane]) * keys[position], offsets[:-1][filled])
        sums.append(of_rows)
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


def _key(name: str, lane: int) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(f"{lane} {name}".encode(), digest_size=8).digest(), "little"))
