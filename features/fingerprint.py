"""A 128-bit checksum of a dataset's content that does not depend on how the users are sharded.

A user's digest is SHA-256 over the names and types of all columns and then over the user's own bytes: its plain columns
and the lengths of its lists, each stream's events, its requests with their numbers of candidates, the candidates; all
of them row by row in the order in which they are stored. A shard's fingerprint is the sum of its users' digests, so
fingerprints of disjoint sets of users add up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from features.errors import DataError
from features.jagged import Jagged, list_array
from features.schema import CANDIDATES

_NUM_LANES = 2
_ROWS_PER_BLOCK = 60_000
_MASK = (1 << 64) - 1


@dataclass(frozen=True)
class Fingerprint:
    """Sums of user digests modulo 2^64, one per lane."""

    lanes: tuple[int, ...] = (0,) * _NUM_LANES

    def __add__(self, other: Fingerprint) -> Fingerprint:
        return Fingerprint(tuple((a + b) & _MASK for a, b in zip(self.lanes, other.lanes, strict=True)))

    @property
    def hex(self) -> str:
        """32 hexadecimal digits."""
        return "".join(f"{lane:016x}" for lane in self.lanes)


@dataclass(frozen=True)
class _Group:
    """Columns of equal length; user u has rows ends[u] : ends[u + 1] of each."""

    columns: list[np.ndarray]
    ends: np.ndarray

    def bytes_of(self, users: range) -> tuple[memoryview, list[int]]:
        """The rows of some users, row by row, and where each user's bytes end."""
        ends = self.ends[users.start : users.stop + 1]
        data, size = self._pack(ends[0], ends[-1])
        return data, ((ends - ends[0]) * size).tolist()

    def pieces_of(self, user: int) -> Iterator[memoryview]:
        """The rows of one user with many, a few at a time."""
        for begin in range(self.ends[user], self.ends[user + 1], _ROWS_PER_BLOCK):
            yield self._pack(begin, min(begin + _ROWS_PER_BLOCK, self.ends[user + 1]))[0]

    def _pack(self, begin: int, end: int) -> tuple[memoryview, int]:
        records = np.empty(end - begin, [(f"f{place}", column.dtype) for place, column in enumerate(self.columns)])
        for place, column in enumerate(self.columns):
            records[f"f{place}"] = column[begin:end]
        return records.view(np.uint8).data, records.dtype.itemsize


def fingerprint(users: pa.Table, requests: pa.Table) -> Fingerprint:
    """Checksum of all columns of whole users and of all their requests.

    Args:
        users: schema `users_schema`.
        requests: schema `requests_schema`; `user_row` ascends and points into `users`.

    Raises:
        DataError: columns of a stream differ in length.
    """
    schema = "\n".join(f"{field.name} {field.type}" for table in (users, requests) for field in table.schema)
    start = hashlib.sha256(schema.encode())
    groups = list(_groups(users, requests))
    digests = bytearray()
    for block in _blocks(groups, users.num_rows):
        digests += _digest_one(start, groups, block[0]) if len(block) == 1 else _digest_some(start, groups, block)
    # Little-endian on every machine, of the 32 bytes of each digest the first lanes.
    lanes = np.frombuffer(digests, "<u8").reshape(users.num_rows, 4)[:, :_NUM_LANES].sum(axis=0, dtype=np.uint64)
    return Fingerprint(tuple(lanes.tolist()))


def _digest_one(start: hashlib._Hash, groups: list[_Group], user: int) -> bytes:
    digest = start.copy()
    for group in groups:
        for piece in group.pieces_of(user):
            digest.update(piece)
    return digest.digest()


def _digest_some(start: hashlib._Hash, groups: list[_Group], users: range) -> bytes:
    """Digests of users one after the other; far faster than each by itself when they have few rows."""
    digests = bytearray()
    parts = [group.bytes_of(users) for group in groups]
    for user in range(len(users)):
        digest = start.copy()
        for data, ends in parts:
            digest.update(data[ends[user] : ends[user + 1]])
        digests += digest.digest()
    return bytes(digests)


def _blocks(groups: list[_Group], num_users: int) -> Iterator[range]:
    """Ranges of users with few rows, so that what is packed for them stays in the processor's cache."""
    rows = np.sum([group.ends for group in groups], axis=0)
    first = 0
    while first < num_users:
        last = int(np.searchsorted(rows, rows[first] + _ROWS_PER_BLOCK, side="right")) - 1
        last = min(max(last, first + 1), num_users)
        yield range(first, last)
        first = last


def _groups(users: pa.Table, requests: pa.Table) -> Iterator[_Group]:
    every_user = np.arange(users.num_rows + 1)
    first_request = np.searchsorted(requests.column("user_row").to_numpy(), every_user)
    streams = _streams(users)
    columns = [users.column(name).to_numpy() for name in users.column_names if "." not in name]
    columns += [jagged[0].lengths for jagged in streams.values()]
    yield _Group([*columns, np.diff(first_request)], every_user)
    for jagged in streams.values():
        yield _Group([column.values for column in jagged], jagged[0].offsets)
    plain = [name for name in requests.column_names if name not in ("user_row", CANDIDATES)]
    fields = requests.schema.field(CANDIDATES).type.value_type.fields
    candidates = [Jagged.from_arrow(list_array(requests, f"{CANDIDATES}.{field.name}"), field.name) for field in fields]
    yield _Group([*(requests.column(name).to_numpy() for name in plain), candidates[0].lengths], first_request)
    yield _Group([column.values for column in candidates], candidates[0].offsets.take(first_request))


def _streams(users: pa.Table) -> dict[str, list[Jagged]]:
    streams: dict[str, list[Jagged]] = {}
    for name in users.column_names:
        stream, dot, _ = name.partition(".")
        if dot:
            jagged = streams.setdefault(stream, [])
            jagged.append(Jagged.from_arrow(list_array(users, name), name))
            if not np.array_equal(jagged[-1].offsets, jagged[0].offsets):
                raise DataError(f"columns of '{stream}' differ in length")
    return streams
