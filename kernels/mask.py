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

    def num_visible(self, num_history: int, *, num_contextual: int, num_candidates: int) -> int:
        """Number of (query, key) pairs of one sequence that see each other: what attention must compute."""
        contextual = num_contextual * (num_contextual + num_history)
        candidates = num_candidates * (num_contextual + num_history + 1)
        return contextual + num_history * num_contextual + self._num_visible_history(num_history) + candidates

    def _num_visible_history(self, length: int) -> int:
        num_global = min(self.global_window, length)
        if self.global_axis == "queries":
            num_local = length - num_global
            return num_global * length - _triangle(num_global) + num_local + self._band(num_local)
        two_sided_band = length + 2 * self._band(length)
        older_queries = _ramp(length - 1 - self.local_window, num_global)
        newer_queries = _triangle(num_global - self.local_window)
        return two_sided_band + older_queries + newer_queries

    def _band(self, length: int) -> int:
        """Pairs of distinct events at most local_window apart among `length` events."""
        inside = min(length, self.local_window + 1)
        return _triangle(inside) + (length - inside) * self.local_window


def _triangle(count: int) -> int:
    """0 + 1 + ... + (count - 1); 0 for a negative count."""
    return max(count, 0) * max(count - 1, 0) // 2


def _ramp(start: int, count: int) -> int:
    """max(start, 0) + max(start - 1, 0) + ..., `count` terms."""
    start = max(start, 0)
    return _triangle(start + 1) - _triangle(start + 1 - count)
