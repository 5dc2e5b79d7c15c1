"""The carrier of a batch's token sequences between the steps of a transducer."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from kernels import AttentionPlan, truncate_jagged


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
        history_lengths: history tokens of each request, on the host.
        plan: the same for attention; layers that see the same tokens share it.
    """

    values_TD: Tensor
    offsets_B1: Tensor
    num_contextual: int
    num_candidates_B: Tensor
    history_lengths: tuple[int, ...]
    plan: AttentionPlan = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        plan = AttentionPlan(self.offsets_B1, self.num_candidates_B, self.num_contextual, self.values_TD.shape[0])
        object.__setattr__(self, "plan", plan)

    def with_values(self, values_TD: Tensor) -> Self:
        """The same layout, and the same plan, with other values."""
        other = replace(self, values_TD=values_TD)
        object.__setattr__(other, "plan", self.plan)
        return other

    def truncated(self, keep: int) -> Self:
        """Only the newest `keep` history tokens of each request, with all contextual tokens and candidates."""
        kept = tuple(min(length, keep) for length in self.history_lengths)
        values_TD, offsets_B1 = truncate_jagged(
            self.values_TD,
            self.offsets_B1,
            num_contextual=self.num_contextual,
            num_candidates_B=self.num_candidates_B,
            keep=keep,
            total=self.values_TD.shape[0] - sum(self.history_lengths) + sum(kept),
        )
        return replace(self, values_TD=values_TD, offsets_B1=offsets_B1, history_lengths=kept)

    def candidates(self, total: int) -> Tensor:
        """(C, D), the candidates' tokens in batch order; `total` is C, which the host would have to wait for."""
        # Candidates end with their request: each row of the result lies as far before that end as before its own.
        shift_B = self.offsets_B1[1:] - self.num_candidates_B.cumsum(0)
        shift_C = shift_B.repeat_interleave(self.num_candidates_B, output_size=total)
        return self.values_TD.index_select(0, shift_C + torch.arange(total, device=shift_C.device))
