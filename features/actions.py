"""Action masks: one bit per name in `features.actions`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def mask_of(names: Iterable[str], actions: Sequence[str]) -> int:
    """The mask with the bits of `names` set."""
    return sum(1 << actions.index(name) for name in names)


def decode_actions(mask: int, actions: Sequence[str]) -> list[str]:
    """Names of the set bits, in bit order."""
    return [name for bit, name in enumerate(actions) if mask >> bit & 1]
