"""Launches the kernels of sums over bags."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from kernels.bag_sum.sum_kernels import add_shares_kernel, bag_gradient_kernel, bag_sum_kernel
from kernels.launch import cdiv, next_power_of_2

# Slots of a bag that a program loads at once.
SLOTS = 4
# Slots of a chunk: programs are short, so that what travels beside them finds a multiprocessor soon.
CHUNK = 128
# Fastest on an H100 for 512 columns, some five slots a bag, and rows that lie in one bag or in thousands.
_MAX_COLUMNS, _SUM_COLUMNS_PER_WARP, _GRADIENT_COLUMNS_PER_WARP = 512, 256, 128
# A row that half of all tokens have leaves hundreds of shares: few columns of many of them at once.
SHARES, _SHARE_COLUMNS, _SHARE_WARPS = 32, 128, 4


def bag_sum(values: Tensor, rows: Tensor, offsets: Tensor, *, more: Tensor | None = None) -> Tensor:
    """The sums.

    Raises:
        NotImplementedError: values that are not fp32, or rows in memory that are not one after the other.
    """
    num_bags, dim = offsets.numel() - 1, values.shape[1]
    out, more = torch.empty(num_bags, dim, device=values.device), values[:0] if more is None else more
    _check(values, more, out)
    if out.numel() > 0:
        columns, fixed = _blocks(dim, _SUM_COLUMNS_PER_WARP)
        with torch.cuda.device_of(values):
            bag_sum_kernel[(num_bags, columns)](
                values, more, rows, offsets, out, values.shape[0], more.shape[0], ROWS=SLOTS, **fixed
            )
    return out


def bag_sum_gradient(gradient: Tensor, bags: Tensor, rows: Tensor, out: Tensor, *, first_row: int = 0) -> Tensor:
    """Writes the rows' gradients.

    Raises:
        NotImplementedError: as bag_sum.
    """
    gradient = gradient.contiguous()
    _check(gradient, out)
    num_slots, dim = rows.numel(), out.shape[1]
    if num_slots > 0 and dim > 0:
        chunks = cdiv(num_slots, CHUNK)
        columns, fixed = _blocks(dim, _GRADIENT_COLUMNS_PER_WARP)
        shares = torch.empty(chunks, 2, dim, device=out.device)
        with torch.cuda.device_of(out):
            bag_gradient_kernel[(chunks, columns)](
                gradient, bags, rows, out, shares, first_row, num_slots, CHUNK=CHUNK, **fixed
            )
            add_shares_kernel[(chunks, cdiv(dim, _SHARE_COLUMNS))](
                rows, out, shares, first_row, num_slots,
                DIM=dim, BLOCK=_SHARE_COLUMNS, CHUNK=CHUNK, ROWS=SHARES, num_warps=_SHARE_WARPS,
            )  # fmt: skip
    return out


@cache
def _blocks(dim: int, columns_per_warp: int) -> tuple[int, dict[str, int]]:
    """How many blocks of columns there are, and what the kernels are compiled for."""
    block = min(next_power_of_2(dim), _MAX_COLUMNS)
    return cdiv(dim, block), {"DIM": dim, "BLOCK": block, "num_warps": max(1, block // columns_per_warp)}


def _check(*matrices: Tensor) -> None:
    for matrix in matrices:
        if matrix.dtype != torch.float32 or not matrix.is_contiguous():
            raise NotImplementedError(
                f'impl "triton" sums contiguous fp32 rows, not {matrix.dtype} with strides {matrix.stride()}'
            )
