"""Action masks: one bit per name in `features.actions`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np


def mask_of(names: Iterable[str], actions: Sequence[str]) -> int:
    """The mask with the bits of `names` set."""
    return sum(1 << actions.index(name) for name in names)


def encode_actions(flags: Sequence[np.ndarray]) -> np.ndarray:
    """(N,) uint32 masks from one (N,) boolean array per action, in the order of `features.actions`."""
    masks = np.zeros(len(flags[0]), np.uint32)
    for bit, flag in enumerate(flags):
        masks |= flag.astype(np.uint32) << np.uint32(bit)
    return masks


def decode_actions(mask: int, actions: Sequence[str]) -> list[str]:
    """Names of the set bits, in bit order."""
    return [name for bit, name in enumerate(actions) if mask >> bit & 1]
