"""Matrix products with what an STU layer does right before and after them.

    out = act(scale_a scale_b (a b^T) + bias) + residual

a (M, K) are tokens, b (N, K) the weight. Programs are persistent: each walks output tiles, a group of rows at a time so
that the weight stays in the cache, and loads the next tile's blocks while it stores this one's.
"""

# mypy: disallow-incomplete-defs=False

import triton
import triton.language as tl

from kernels.hstu.rows import silu


@triton.jit
def load_tile(
    source, row, column, num_rows, num_columns, stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """(ROWS, COLUMNS) from (row, column) on, zeros beyond the matrix."""
    if TMA:
        values = source.load([row, column])
    else:
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, COLUMNS)
        mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
        values = tl.load(source + rows.to(tl.int64)[:, None] * stride + columns[None, :], mask=mask, other=0.0)
    return values


@triton.jit
def store_tile(
    target, values, row, column, num_rows, num_columns, stride,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """The way back of `load_tile`."""
    if TMA:
        target.store([row, column], values.to(target.dtype))
    else:
        rows = row + tl.arange(0, ROWS)
        columns = column + tl.arange(0, COLUMNS)
        mask = (rows < num_rows)[:, None] & (columns < num_columns)[None, :]
        pointers = target + rows.to(tl.int64)[:, None] * stride + columns[None, :]
        tl.store(pointers, values.to(target.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M"])
def gemm_kernel(
    a_source, b_source, residual_source, out_source, pre_source, scale_a_ptr, scale_b_ptr, bias_ptr,
    M, N, K, stride_a, stride_b, stride_r, stride_o, stride_pre,
    SCALED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, SILU: tl.constexpr, PRE: tl.constexpr,
    FAST_TANH: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr, PROGRAMS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """out, and with PRE what the activation gets."""
    tiles_m, tiles_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    for tile in tl.range(tl.program_id(0), tiles_m * tiles_n, PROGRAMS, flatten=TMA, num_stages=STAGES):
        group = tile // (GROUP_M * tiles_n)
        group_size = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
        row = (group * GROUP_M + tile % (GROUP_M * tiles_n) % group_size) * BLOCK_M
        column = tile % (GROUP_M * tiles_n) // group_size * BLOCK_N
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in tl.range(0, K, BLOCK_K):
            a = load_tile(a_source, row, k, M, K, stride_a, BLOCK_M, BLOCK_K, TMA)
            b = load_tile(b_source, column, k, N, K, stride_b, BLOCK_N, BLOCK_K, TMA)
            acc = tl.dot(a, tl.trans(b), acc, input_precision=PRECISION)
        rows = row + tl.arange(0, BLOCK_M)
        columns = column + tl.arange(0, BLOCK_N)
        if SCALED:
            scale_a = tl.load(scale_a_ptr + rows, mask=rows < M, other=0.0)
            scale_b = tl.load(scale_b_ptr + columns, mask=columns < N, other=0.0)
            acc = acc * scale_a[:, None] * scale_b[None, :]
        if BIAS:
            acc += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        if PRE:
            store_tile(pre_source, acc, row, column, M, N, stride_pre, BLOCK_M, BLOCK_N, TMA)
        if SILU:
            acc = silu(acc * 0.5, FAST_TANH)
        if RESIDUAL:
            acc += load_tile(residual_source, row, column, M, N, stride_r, BLOCK_M, BLOCK_N, TMA).to(tl.float32)
        store_tile(out_source, acc, row, column, M, N, stride_o, BLOCK_M, BLOCK_N, TMA)
