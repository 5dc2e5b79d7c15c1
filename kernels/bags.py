"""Sums of rows over bags, and the rows' gradients, in PyTorch and in Triton; some rows lie in half of all bags.

Both take a range of the rows, so that what is there already is summed while the rest is on its way. Neither knows
autograd: whoever calls them has transfers between them.

Legend: U rows, N bags, K slots of all bags, M slots with a row of the range, D columns.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from kernels.impl import check_impl
from kernels.jagged import lengths_to_offsets


def bag_sum(
    values_UD: Tensor,
    rows_K: Tensor,
    offsets_N1: Tensor,
    *,
    impl: str,
    first_row: int = 0,
    add_to_ND: Tensor | None = None,
) -> Tensor:
    """Sums rows over each bag, in fp32.

    Args:
        values_UD: (U, D) rows first_row, first_row + 1, ...
        rows_K: (K,) integers, the row of each slot; slots with other rows than these U add nothing.
        offsets_N1: (N + 1,) bag n has the slots offsets[n] up to offsets[n + 1].
        impl: "reference" or "triton".
        first_row: number of the first row.
        add_to_ND: (N, D) contiguous sums that these are added to, in place.

    Returns:
        (N, D), add_to_ND itself where it is given.
    """
    check_impl(impl, values_UD)
    if impl == "triton":
        from kernels.bag_sum import sums

        return sums.bag_sum(values_UD, rows_K, offsets_N1, first_row=first_row, add_to=add_to_ND)
    is_here_K = (rows_K >= first_row) & (rows_K < first_row + values_UD.shape[0])
    offsets_N1 = lengths_to_offsets(is_here_K)[offsets_N1]
    sums_ND = embedding_bag(rows_K[is_here_K] - first_row, values_UD, offsets_N1, mode="sum", include_last_offset=True)
    return sums_ND if add_to_ND is None else add_to_ND.add_(sums_ND)


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
