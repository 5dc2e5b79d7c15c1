"""Finding ids in an array: an index that is built once and searched by whole columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ABSENT = np.int32(-1)
_MIN_SPAN = 1 << 16
_MAX_SPAN_PER_ID = 4
# 2^64 over the golden ratio: multiplying by it spreads even equally spaced ids over the high bits.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class IdIndex:
    """Where each id of an array is.

    Ids that lie close together are addressed directly, others through a hash table with linear probing.

    Attributes:
        positions: (S,) int32 position of the id in each slot, -1 in an empty one.
        keys: (S,) int64 id in each slot of the hash table; None when slots are counted from `first`.
        first: the smallest id, of direct addressing.
        shift: 64 - bits of a home slot, of hashing.
        max_probes: slots that a search looks at, at most.
    """

    positions: np.ndarray
    keys: np.ndarray | None = None
    first: int = 0
    shift: int = 0
    max_probes: int = 1

    @classmethod
    def of(cls, ids: np.ndarray) -> IdIndex:
        """The index of (N,) distinct int64 ids."""
        if len(ids) == 0:
            return cls(np.full(1, _ABSENT))
        first, last = int(ids.min()), int(ids.max())
        span = last - first + 1
        if span <= max(_MAX_SPAN_PER_ID * len(ids), _MIN_SPAN):
            positions = np.full(span + 1, _ABSENT)  # the slot after the last is for whatever lies outside
            positions[ids - first] = np.arange(len(ids), dtype=np.int32)
            return cls(positions, first=first)
        return cls._hashed(ids)

    @classmethod
    def _hashed(cls, ids: np.ndarray) -> IdIndex:
        bits = (2 * len(ids) - 1).bit_length()
        shift = 64 - bits
        homes = _homes(ids, shift)
        order = np.argsort(homes, kind="stable")
        homes = homes[order]
        # In the order of their homes each id takes the first slot from its home on that is free.
        place = np.arange(len(ids))
        slots = place + np.maximum.accumulate(homes - place)
        positions = np.full(max((1 << bits), int(slots[-1]) + 1) + 1, _ABSENT)
        keys = np.zeros(len(positions), np.int64)
        positions[slots], keys[slots] = order, ids[order]
        return cls(positions, keys, shift=shift, max_probes=int((slots - homes).max()) + 1)

    def find(self, ids: np.ndarray) -> np.ndarray:
        """(N,) int32 position of each int64 id, -1 where the array does not have it."""
        if self.keys is None:
            outside = np.uint64(len(self.positions) - 1)
            with np.errstate(over="ignore"):
                slots = (ids - np.int64(self.first)).view(np.uint64)  # what is below the first wraps to far above
            return self.positions.take(np.minimum(slots, outside).view(np.int64))
        slots = _homes(ids, self.shift)
        found = self.positions.take(slots)
        waiting = np.flatnonzero((self.keys.take(slots) != ids) & (found != _ABSENT))
        found[waiting] = _ABSENT
        for _ in range(1, self.max_probes):
            if len(waiting) == 0:
                break
            slots[waiting] += 1
            here = slots[waiting]
            position = self.positions[here]
            hit = (self.keys[here] == ids[waiting]) & (position != _ABSENT)
            found[waiting[hit]] = position[hit]
            waiting = waiting[~hit & (position != _ABSENT)]
        return found


def _homes(ids: np.ndarray, shift: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        return ((ids.view(np.uint64) * _GOLDEN) >> np.uint64(shift)).view(np.int64)
