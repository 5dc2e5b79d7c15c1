"""The ways in which logs tell actions, and how those become bits of action_mask."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipelines.sources.raw import ActionRange, EventTypes, LogLayout


@dataclass(frozen=True)
class NumberRange:
    """An action that is told by minimum <= column <= maximum."""

    column: str
    minimum: float = -math.inf
    maximum: float = math.inf


@dataclass(frozen=True)
class ActionTable:
    """Where a log tells which actions; an action may be told in more than one way.

    Attributes:
        flags: 0/1 column of each action.
        type_column: a column that names what a row is.
        types: the action of each of its values; an empty name is an impression without an action.
        ranges: a number that tells the action.
    """

    flags: Mapping[str, str] = field(default_factory=dict)
    type_column: str | None = None
    types: Mapping[str, str] = field(default_factory=dict)
    ranges: Mapping[str, NumberRange] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """Every action, once."""
        return tuple(dict.fromkeys([*self.flags, *(name for name in self.types.values() if name), *self.ranges]))


def with_actions(layout: LogLayout, table: ActionTable, actions: tuple[str, ...]) -> LogLayout:
    """The layout with the bits of `actions`; what the table tells of others is left out."""
    bits = {name: bit for bit, name in enumerate(actions)}
    masks = {value: 1 << bits[name] if name in bits else 0 for value, name in table.types.items()}
    return replace(
        layout,
        flags=tuple((table.flags[name], bit) for name, bit in bits.items() if name in table.flags),
        event_types=None if table.type_column is None else EventTypes(table.type_column, masks),
        ranges=tuple(
            ActionRange(told.column, bits[name], told.minimum, told.maximum)
            for name, told in table.ranges.items()
            if name in bits
        ),
    )
