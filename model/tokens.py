"""The carriers between tables and transducers: which rows tokens are sums of, and the tokens.

Legend: B requests, T tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class JaggedTokens:
    """Tokens of one kind: values_TD (T, D), and offsets_B1 (B + 1,) that say which request owns them."""

    values_TD: Tensor
    offsets_B1: Tensor


@dataclass(frozen=True)
class HistoryTokens(JaggedTokens):
    """History tokens of a stream; lengths, of each request, are known on the host."""

    lengths: tuple[int, ...]

    def check(self, max_length: int) -> None:
        """Refuses histories that are longer than a stream's max_length."""
        if max(self.lengths, default=0) > max_length:
            raise ValueError(f"a history of {max(self.lengths)} tokens is longer than the stream's max_length")


@dataclass(frozen=True)
class TokenRows:
    """Which rows a batch's tokens are sums of.

    Attributes:
        plan: the tables' own.
        num_tokens: of the contextual ones, of each stream's history and of the candidates.
    """

    plan: Any
    num_tokens: tuple[int, ...]


@dataclass(frozen=True)
class EmbeddedTokens:
    """A batch's tokens; `histories` has an entry per configured stream."""

    contextual: JaggedTokens
    histories: dict[str, HistoryTokens]
    candidates: JaggedTokens
