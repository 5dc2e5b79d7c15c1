"""Sums of rows over bags, and the rows' gradients, in PyTorch and in Triton; some rows lie in half of all bags.

Rows may lie in two places, as what came from elsewhere does, and gradients are summed for a range of them, so that the
first are on their way while the others are summed. Neither knows autograd: whoever calls them has transfers between.

Legend: U and W rows, N bags, K slots of all bags, M slots with a row of the range, D columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from kernels.impl import check_impl
from kernels.jagged import lengths_to_offsets


def bag_sum(
    values_UD: Tensor, rows_K: Tensor, offsets_N1: Tensor, *, impl: str, more_WD: Tensor | None = None
) -> Tensor:
    """Sums rows over each bag, in fp32.

    Args:
        values_UD: (U, D) rows 0, 1, ...
        rows_K: (K,) integers, the row of each slot; those of other rows add nothing.
        offsets_N1: (N + 1,) bag n has the slots offsets[n] up to offsets[n + 1].
        impl: "reference" or "triton".
        more_WD: (W, D) the rows U, U + 1, ..., which lie elsewhere.

    Returns:
        (N, D).
    """
    check_impl(impl, values_UD)
    if impl == "triton":
        from kernels.bag_sum import sums

        return sums.bag_sum(values_UD, rows_K, offsets_N1, more=more_WD)
    if more_WD is not None:
        values_UD = torch.cat([values_UD, more_WD])
    is_here_K = (rows_K >= 0) & (rows_K < values_UD.shape[0])
    offsets_N1 = lengths_to_offsets(is_here_K)[offsets_N1]
    return embedding_bag(rows_K[is_here_K], values_UD, offsets_N1, mode="sum", include_last_offset=True)


def bag_sum_gradient(
    gradient_ND: Tensor, bags_M: Tensor, rows_M: Tensor, *, out_UD: Tensor, impl: str, first_row: int = 0
) -> Tensor:
    """Gradient of each row: the sum of the gradients of the bags that it lies in, in fp32, the same in every run.

    Args:
        gradient_ND: (N, D) of the sums.
        bags_M: (M,) integers, the bag of each slot.
        rows_M: (M,) integers, the row of each slot, ascending; each row of the range at least once.
        out_UD: (U, D) contiguous, takes the gradients of rows first_row, first_row + 1, ...
        impl: "reference" or "triton".
        first_row: number of the first row.

    Returns:
        out_UD.
    """
    check_impl(impl, gradient_ND)
    if impl == "triton":
        from kernels.bag_sum import sums

        return sums.bag_sum_gradient(gradient_ND, bags_M, rows_M, out_UD, first_row=first_row)
    # The same sum the other way round: a row is the bag of the gradients that it gets.
    rows_U1 = torch.arange(first_row, first_row + out_UD.shape[0] + 1, dtype=rows_M.dtype, device=rows_M.device)
    offsets_U1 = torch.searchsorted(rows_M, rows_U1).to(bags_M.dtype)
    return out_UD.copy_(embedding_bag(bags_M, gradient_ND, offsets_U1, mode="sum", include_last_offset=True))
