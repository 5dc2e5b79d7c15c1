"""A 64-bit mixer that gives the same value in every process, host and version."""

from __future__ import annotations

import numpy as np


def mix64(values: np.ndarray) -> np.ndarray:
    """splitmix64's finaliser of each value, uint64, same shape."""
    mixed = np.asarray(values).astype(np.uint64, copy=True)
    with np.errstate(over="ignore"):
        mixed += np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(30)
        mixed *= np.uint64(0xBF58476D1CE4E5B9)
        mixed ^= mixed >> np.uint64(27)
        mixed *= np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return mixed


def shard_of(user_id: np.ndarray, num_shards: int) -> np.ndarray:
    """The shard that holds each user, int32."""
    return (mix64(user_id) % np.uint64(num_shards)).astype(np.int32)
