"""The attention mask of HSTU 2.0 over one user's newest-first sequence (paper Eq. 6-7 and Fig. 3).

A sequence is [contextual | history, newest to oldest | candidates]. With a(.) the index in the history:

    query \\ key   contextual   history                                                      candidate
    contextual    all          all                                                          none
    history       all          a(k) >= a(q) and (a(k) - a(q) <= K1 or a(q) < K2)            none
    candidate     all          all                                                          itself

`global_axis="keys"` replaces the history-history cell by |a(k) - a(q)| <= K1 or a(k) < K2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class AttentionMask:
    """Which keys a query sees.

    Attributes:
        local_window: K1, how many older events a history query sees besides itself.
        global_window: K2, how many of the newest history queries (or keys) are global.
        global_axis: "queries" is the paper's semi-local attention: the newest K2 queries see everything older.
            "keys" makes the newest K2 events visible to all and the band two-sided.

    A local_window of at least the longest history is full causal HSTU.
    """

    local_window: int
    global_window: int
    global_axis: Literal["queries", "keys"] = "queries"

    def __post_init__(self) -> None:
        if self.local_window < 0 or self.global_window < 0:
            raise ValueError("local_window and global_window must not be negative")
        if self.global_axis not in ("queries", "keys"):
            raise ValueError(f"global_axis must be 'queries' or 'keys', not {self.global_axis!r}")
