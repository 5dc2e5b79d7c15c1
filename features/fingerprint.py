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
_ROWS_PER_BLOCK = 20_000
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

    def bytes_of(self, first: int, last: int) -> tuple[memoryview, list[int]]:
        """The rows of some users, row by row, and where each user's bytes end."""
        begin, end = self.ends[first], self.ends[last]
        records = np.empty(end - begin, [(f"f{place}", column.dtype) for place, column in enumerate(self.columns)])
        for place, column in enumerate(self.columns):
            records[f"f{place}"] = column[begin:end]
        ends = (self.ends[first : last + 1] - begin) * records.dtype.itemsize
        return records.view(np.uint8).data, ends.tolist()


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
    for first, last in _blocks(groups, users.num_rows):
        parts = [group.bytes_of(first, last) for group in groups]
        for user in range(last - first):
            digest = start.copy()
            for data, ends in parts:
                digest.update(data[ends[user] : ends[user + 1]])
            digests += digest.digest()
    # Little-endian on every machine, of the 32 bytes of each digest the first lanes.
    lanes = np.frombuffer(digests, "<u8").reshape(users.num_rows, 4)[:, :_NUM_LANES].sum(axis=0, dtype=np.uint64)
    return Fingerprint(tuple(lanes.tolist()))


def _blocks(groups: list[_Group], num_users: int) -> Iterator[tuple[int, int]]:
    """Ranges of users with few rows, so that what is packed for them stays in the processor's cache."""
    rows = np.sum([group.ends for group in groups], axis=0)
    first = 0
    while first < num_users:
        last = int(np.searchsorted(rows, rows[first] + _ROWS_PER_BLOCK, side="right")) - 1
        last = min(max(last, first + 1), num_users)
        yield first, last
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
