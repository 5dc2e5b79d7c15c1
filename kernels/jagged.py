"""Joining, splitting and truncating jagged sequences by offset arithmetic; nothing is padded and nothing is looped.

Legend: B requests, T tokens. Request b of `values` (T, ...) owns rows offsets_B1[b] : offsets_B1[b + 1].

    concat_jagged   [a0 a1 | b0] and [x0 | y0 y1]  ->  [a0 a1 x0 | b0 y0 y1]
    split_jagged    the way back
    truncate_jagged [contextual | history | candidates]  ->  [contextual | newest `keep` of history | candidates]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def lengths_to_offsets(lengths_B: Tensor) -> Tensor:
    """(B,) lengths to (B + 1,) int64 offsets that begin with 0."""
    offsets_B1 = lengths_B.new_zeros(lengths_B.numel() + 1, dtype=torch.int64)
    torch.cumsum(lengths_B, dim=0, out=offsets_B1[1:])
    return offsets_B1


def request_of_rows(offsets_B1: Tensor, total: int) -> Tensor:
    """(total,) int64, the request that owns each row."""
    return torch.repeat_interleave(offsets_B1.diff(), output_size=total)


def position_of_rows(offsets_B1: Tensor, total: int) -> Tensor:
    """(total,) int64, the index of each row within its request."""
    starts_T = offsets_B1[:-1].repeat_interleave(offsets_B1.diff(), output_size=total)
    return torch.arange(total, device=offsets_B1.device) - starts_T


def concat_jagged(values: Sequence[Tensor], offsets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Joins the parts of each request in the given order.

    Args:
        values: (T_i, ...) per part, equal beyond the first dimension.
        offsets: (B + 1,) int64 per part.

    Returns:
        (sum of T_i, ...) values and their (B + 1,) offsets.
    """
    offsets_P1 = torch.stack(tuple(offsets))
    lengths_PB, joined_B1 = offsets_P1.diff(dim=1), offsets_P1.sum(dim=0)
    # Where each request's piece of each part ends, in the joined rows and in the parts one behind the other.
    joined_end_PB = joined_B1[:-1] + lengths_PB.cumsum(0)
    lengths = lengths_PB.flatten()
    source = torch.cat(tuple(values))
    shift = joined_end_PB.flatten() - lengths.cumsum(0)
    shift_T = shift.repeat_interleave(lengths, output_size=source.shape[0])
    rows_T = shift_T + torch.arange(source.shape[0], device=source.device)
    return torch.empty_like(source).index_copy_(0, rows_T, source), joined_B1


def split_jagged(values: Tensor, offsets_B1: Tensor, left_B: Tensor) -> tuple[Tensor, Tensor]:
    """Cuts each request into its first `left_B` rows and the rest.

    Args:
        values: (T, ...).
        offsets_B1: (B + 1,) int64.
        left_B: (B,) int64, rows of each request that go left, at most its length.

    Returns:
        the left rows and the right rows, each concatenated over requests.
    """
    total = values.shape[0]
    left_T = left_B.repeat_interleave(offsets_B1.diff(), output_size=total)
    goes_left_T = position_of_rows(offsets_B1, total) < left_T
    return values.index_select(0, goes_left_T.nonzero()[:, 0]), values.index_select(0, (~goes_left_T).nonzero()[:, 0])


def truncate_jagged(
    values: Tensor,
    offsets_B1: Tensor,
    *,
    num_contextual: int,
    num_candidates_B: Tensor,
    keep: int,
    total: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Drops all but the newest `keep` history tokens of each request; contextual tokens and candidates stay.

    Args:
        values: (T, ...), each request [contextual | history, newest to oldest | candidates].
        offsets_B1: (B + 1,) int64.
        num_contextual: contextual tokens of every request.
        num_candidates_B: (B,) int64, candidates of each request.
        keep: history tokens that stay, at most.
        total: rows that stay, which the host waits for unless given; a wrong one is an error, on CUDA without waiting.

    Returns:
        the kept rows and their (B + 1,) offsets.
    """
    newest_B = (offsets_B1.diff() - num_candidates_B).clamp(max=num_contextual + keep)
    kept_B1 = lengths_to_offsets(newest_B + num_candidates_B)
    if total is None:
        total = int(kept_B1[-1])
    else:
        torch._assert_async(kept_B1[-1] == total, "the given total is not the number of rows that stay")
    # A request's rows are dropped behind its newest; a row that stays moves by all that was dropped before it.
    kept_T = torch.arange(total, device=values.device)
    num_drops_T = torch.bucketize(kept_T, kept_B1[:-1] + newest_B, right=True)
    dropped_B1 = offsets_B1 - kept_B1
    return values.index_select(0, kept_T + dropped_B1.index_select(0, num_drops_T)), kept_B1
