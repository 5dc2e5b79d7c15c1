"""The carrier of a batch's token sequences between the steps of a transducer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from kernels import split_jagged, truncate_jagged


@dataclass(frozen=True)
class TokenSequence:
    """B jagged sequences [contextual | history, newest to oldest | candidates], concatenated.

        request 0                    request 1
        [c c h0 h1 h2 h3 x x x]      [c c x]          num_contextual 2, num_candidates_B [3, 1]

    Attributes:
        values_TD: (T, D) tokens.
        offsets_B1: (B + 1,) int64.
        num_contextual: contextual tokens of every request.
        num_candidates_B: (B,) int64.
    """

    values_TD: Tensor
    offsets_B1: Tensor
    num_contextual: int
    num_candidates_B: Tensor

    def with_values(self, values_TD: Tensor) -> Self:
        """The same layout with other values."""
        return replace(self, values_TD=values_TD)

    def truncated(self, keep: int) -> Self:
        """Only the newest `keep` history tokens of each request, with all contextual tokens and candidates."""
        values_TD, offsets_B1 = truncate_jagged(
            self.values_TD,
            self.offsets_B1,
            num_contextual=self.num_contextual,
            num_candidates_B=self.num_candidates_B,
            keep=keep,
        )
        return replace(self, values_TD=values_TD, offsets_B1=offsets_B1)

    def candidates(self) -> Tensor:
        """(C, D), the candidates' tokens in batch order."""
        before_B = self.offsets_B1.diff() - self.num_candidates_B
        return split_jagged(self.values_TD, self.offsets_B1, before_B)[1]
