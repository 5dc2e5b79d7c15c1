"""LayerNorm and the gated norm, forward and backward, in one pass over memory each.

A program holds ROWS whole rows as (ROWS, G, BLOCK), G groups of DIM columns that are normalised apart; LayerNorm is one
group. Statistics are never stored: whoever holds a row computes them again. Nothing is compiled for a number of rows,
which is another in every batch.
"""

# mypy: disallow-incomplete-defs=False

import triton
import triton.language as tl

from kernels.hstu.rows import silu_and_slope

# The largest number of float8 e4m3.
FP8_MAX = tl.constexpr(448.0)


@triton.jit
def row_offsets(row, stride, ROWS: tl.constexpr, G: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """(ROWS, G, BLOCK) element offsets of rows from `row` on."""
    rows = (row + tl.arange(0, ROWS)).to(tl.int64)[:, None, None]
    return rows * stride + column_offsets(G, DIM, BLOCK)


@triton.jit
def column_offsets(G: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """(1, G, BLOCK) column of each element."""
    return tl.arange(0, G)[None, :, None] * DIM + tl.arange(0, BLOCK)[None, None, :]


@triton.jit
def inside_rows(row, num_rows, ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """(ROWS, 1, BLOCK) mask of what exists."""
    return ((row + tl.arange(0, ROWS)) < num_rows)[:, None, None] & (tl.arange(0, BLOCK) < DIM)[None, None, :]


@triton.jit
def normalise(x, inside, epsilon, DIM: tl.constexpr):
    """(x - mean) / deviation of each group, and 1 / deviation."""
    mean = tl.sum(x, axis=2, keep_dims=True) / DIM
    centred = tl.where(inside, x - mean, 0.0)
    inverse = tl.rsqrt(tl.sum(centred * centred, axis=2, keep_dims=True) / DIM + epsilon)
    return centred * inverse, inverse


@triton.jit
def normalise_gradient(gradient, normal, inverse, DIM: tl.constexpr):
    """Gradient of the norm's input, from that of its normal."""
    along = tl.sum(gradient * normal, axis=2, keep_dims=True) / DIM
    return inverse * (gradient - tl.sum(gradient, axis=2, keep_dims=True) / DIM - normal * along)


@triton.jit
def store_quantised(out_ptr, scales_ptr, y, offsets, inside, row, num_rows, ROWS: tl.constexpr):
    """Writes rows as e4m3 with one scale each, their largest element / 448; a row of zeros stays zeros."""
    largest = tl.max(tl.max(tl.abs(y), axis=2), axis=1)
    factor = tl.where(largest > 1e-35, FP8_MAX / largest, 0.0)
    tl.store(out_ptr + offsets, (y * factor[:, None, None]).to(out_ptr.dtype.element_ty), mask=inside)
    rows = row + tl.arange(0, ROWS)
    tl.store(scales_ptr + rows, largest / FP8_MAX, mask=rows < num_rows)


@triton.jit
def kept_by_dropout(row, seed, drop_below, ROWS: tl.constexpr, G: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """(ROWS, G, BLOCK) bool, the same for a seed in forward and backward; drop_below of 2^16 elements are dropped.

    Philox once a row and an integer hash of full avalanche (lowbias32) for two columns, 16 bits each: Philox for each
    would take longer than the memory.
    """
    of_row = tl.randint(seed, row + tl.arange(0, ROWS)).to(tl.uint32, bitcast=True)[:, None, None]
    columns = column_offsets(G, DIM, BLOCK).to(tl.uint32)
    x = of_row + (columns >> 1) * 0x9E3779B9
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    x = x ^ (x >> 16)
    return ((x >> ((columns & 1) * 16)) & 0xFFFF) >= drop_below


@triton.jit(do_not_specialize=["num_rows"])
def layer_norm_fwd_kernel(
    x_ptr, weight_ptr, bias_ptr, out_ptr, quantised_ptr, scales_ptr, num_rows, stride_x, epsilon,
    DIM: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, FULL: tl.constexpr, QUANTISE: tl.constexpr,
):  # fmt: skip
    """LayerNorm of ROWS rows: in full, quantised, or both."""
    row = tl.program_id(0) * ROWS
    columns = column_offsets(1, DIM, BLOCK)
    inside = inside_rows(row, num_rows, ROWS, DIM, BLOCK)
    x = tl.load(x_ptr + row_offsets(row, stride_x, ROWS, 1, DIM, BLOCK), mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=columns < DIM, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=columns < DIM, other=0.0).to(tl.float32)
    normal, _ = normalise(x, inside, epsilon, DIM)
    y = normal * weight + bias
    offsets = row_offsets(row, DIM, ROWS, 1, DIM, BLOCK)
    if FULL:
        tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask=inside)
    if QUANTISE:
        store_quantised(quantised_ptr, scales_ptr, tl.where(inside, y, 0.0), offsets, inside, row, num_rows, ROWS)


@triton.jit(do_not_specialize=["num_rows", "rows_per_program"])
def layer_norm_bwd_kernel(
    dy_ptr, x_ptr, weight_ptr, residual_ptr, dx_ptr, shares_ptr,
    num_rows, stride_dy, stride_x, stride_r, stride_dx, epsilon, rows_per_program,
    DIM: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, RESIDUAL: tl.constexpr,
):  # fmt: skip
    """dx (+ a residual's gradient) of this program's rows, and its shares of dweight and dbias, side by side."""
    first = tl.program_id(0) * rows_per_program
    last = tl.minimum(first + rows_per_program, num_rows)
    columns = column_offsets(1, DIM, BLOCK)
    weight = tl.load(weight_ptr + columns, mask=columns < DIM, other=0.0).to(tl.float32)
    dweight = tl.zeros((1, 1, BLOCK), tl.float32)
    dbias = tl.zeros((1, 1, BLOCK), tl.float32)
    for row in range(first, last, ROWS):
        inside = inside_rows(row, last, ROWS, DIM, BLOCK)
        x = tl.load(x_ptr + row_offsets(row, stride_x, ROWS, 1, DIM, BLOCK), mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row_offsets(row, stride_dy, ROWS, 1, DIM, BLOCK), mask=inside, other=0.0).to(tl.float32)
        normal, inverse = normalise(x, inside, epsilon, DIM)
        dx = normalise_gradient(dy * weight, normal, inverse, DIM)
        if RESIDUAL:
            offsets = row_offsets(row, stride_r, ROWS, 1, DIM, BLOCK)
            dx += tl.load(residual_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        offsets = row_offsets(row, stride_dx, ROWS, 1, DIM, BLOCK)
        tl.store(dx_ptr + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)
        dweight += tl.sum(dy * normal, axis=0, keep_dims=True)
        dbias += tl.sum(dy, axis=0, keep_dims=True)
    shares = shares_ptr + tl.program_id(0) * (2 * DIM) + columns
    tl.store(shares, dweight, mask=columns < DIM)
    tl.store(shares + DIM, dbias, mask=columns < DIM)


@triton.jit(do_not_specialize=["num_rows", "seed", "drop_below"])
def gated_norm_fwd_kernel(
    a_ptr, u_ptr, weight_ptr, bias_ptr, out_ptr, scales_ptr, num_rows, stride_a, stride_u, stride_o,
    epsilon, drop_below, factor, seed,
    G: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, QUANTISE: tl.constexpr,
    DROPOUT: tl.constexpr,
):  # fmt: skip
    """Dropout(Norm(a) * u) of ROWS rows; what is kept is scaled by factor."""
    row = tl.program_id(0) * ROWS
    columns = column_offsets(G, DIM, BLOCK)
    inside = inside_rows(row, num_rows, ROWS, DIM, BLOCK)
    exists = tl.arange(0, BLOCK)[None, None, :] < DIM
    a = tl.load(a_ptr + row_offsets(row, stride_a, ROWS, G, DIM, BLOCK), mask=inside, other=0.0).to(tl.float32)
    u = tl.load(u_ptr + row_offsets(row, stride_u, ROWS, G, DIM, BLOCK), mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=exists, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=exists, other=0.0).to(tl.float32)
    normal, _ = normalise(a, inside, epsilon, DIM)
    y = (normal * weight + bias) * u
    if DROPOUT:
        y = tl.where(kept_by_dropout(row, seed, drop_below, ROWS, G, DIM, BLOCK), y * factor, 0.0)
    offsets = row_offsets(row, stride_o, ROWS, G, DIM, BLOCK)
    if QUANTISE:
        store_quantised(out_ptr, scales_ptr, tl.where(inside, y, 0.0), offsets, inside, row, num_rows, ROWS)
    else:
        tl.store(out_ptr + offsets, y.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_rows", "rows_per_program", "seed", "drop_below"])
def gated_norm_bwd_kernel(
    dy_ptr, a_ptr, u_ptr, weight_ptr, bias_ptr, da_ptr, du_ptr, y_ptr, shares_ptr,
    num_rows, stride_dy, stride_a, stride_u, stride_da, stride_du, stride_y,
    epsilon, drop_below, factor, seed, rows_per_program,
    G: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, DROPOUT: tl.constexpr,
):  # fmt: skip
    """da, du and the forward's y again of this program's rows, and its shares of dweight and dbias, side by side."""
    first = tl.program_id(0) * rows_per_program
    last = tl.minimum(first + rows_per_program, num_rows)
    columns = column_offsets(G, DIM, BLOCK)
    exists = tl.arange(0, BLOCK)[None, None, :] < DIM
    weight = tl.load(weight_ptr + columns, mask=exists, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=exists, other=0.0).to(tl.float32)
    dweight = tl.zeros((1, G, BLOCK), tl.float32)
    dbias = tl.zeros((1, G, BLOCK), tl.float32)
    # The next rows come while these are worked on: with dropout a program holds too much for many to fit.
    for row in tl.range(first, last, ROWS, num_stages=2):
        inside = inside_rows(row, last, ROWS, DIM, BLOCK)
        a = tl.load(a_ptr + row_offsets(row, stride_a, ROWS, G, DIM, BLOCK), mask=inside, other=0.0).to(tl.float32)
        u = tl.load(u_ptr + row_offsets(row, stride_u, ROWS, G, DIM, BLOCK), mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + row_offsets(row, stride_dy, ROWS, G, DIM, BLOCK), mask=inside, other=0.0).to(tl.float32)
        normal, inverse = normalise(a, inside, epsilon, DIM)
        scaled = normal * weight + bias
        y = scaled * u
        if DROPOUT:
            kept = kept_by_dropout(row, seed, drop_below, ROWS, G, DIM, BLOCK)
            y = tl.where(kept, y * factor, 0.0)
            dy = tl.where(kept, dy * factor, 0.0)
        dscaled = dy * u
        da = normalise_gradient(dscaled * weight, normal, inverse, DIM)
        tl.store(da_ptr + row_offsets(row, stride_da, ROWS, G, DIM, BLOCK), da.to(da_ptr.dtype.element_ty), mask=inside)
        tl.store(
            du_ptr + row_offsets(row, stride_du, ROWS, G, DIM, BLOCK),
            (dy * scaled).to(du_ptr.dtype.element_ty),
            mask=inside,
        )
        tl.store(y_ptr + row_offsets(row, stride_y, ROWS, G, DIM, BLOCK), y.to(y_ptr.dtype.element_ty), mask=inside)
        dweight += tl.sum(dscaled * normal, axis=0, keep_dims=True)
        dbias += tl.sum(dscaled, axis=0, keep_dims=True)
    shares = shares_ptr + tl.program_id(0) * (2 * G * DIM) + columns
    tl.store(shares, dweight, mask=exists)
    tl.store(shares + G * DIM, dbias, mask=exists)


@triton.jit(do_not_specialize=["num_rows"])
def quantise_rows_kernel(
    x_ptr, out_ptr, scales_ptr, num_rows, stride_x, stride_o,
    DIM: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Rows as e4m3 with one scale each."""
    row = tl.program_id(0) * ROWS
    inside = inside_rows(row, num_rows, ROWS, DIM, BLOCK)
    x = tl.load(x_ptr + row_offsets(row, stride_x, ROWS, 1, DIM, BLOCK), mask=inside, other=0.0).to(tl.float32)
    offsets = row_offsets(row, stride_o, ROWS, 1, DIM, BLOCK)
    store_quantised(out_ptr, scales_ptr, x, offsets, inside, row, num_rows, ROWS)


@triton.jit(do_not_specialize=["num_rows", "rows_per_program"])
def silu_bwd_kernel(
    gradient_ptr, pre_ptr, dbias_ptr, num_rows, stride_g, stride_p, rows_per_program, num_columns,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, FAST_TANH: tl.constexpr,
):  # fmt: skip
    """gradient *= SiLU'(pre) in place, of a block of columns, and its share of the columns' sums."""
    first = tl.program_id(0) * rows_per_program
    last = tl.minimum(first + rows_per_program, num_rows)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    total = tl.zeros((1, COLUMNS), tl.float32)
    for row in range(first, last, ROWS):
        rows = (row + tl.arange(0, ROWS)).to(tl.int64)[:, None]
        inside = (rows < last) & (columns < num_columns)
        pre = tl.load(pre_ptr + rows * stride_p + columns, mask=inside, other=0.0).to(tl.float32)
        gradient = tl.load(gradient_ptr + rows * stride_g + columns, mask=inside, other=0.0).to(tl.float32)
        _, slope = silu_and_slope(pre * 0.5, FAST_TANH)
        gradient = gradient * slope
        tl.store(gradient_ptr + rows * stride_g + columns, gradient.to(gradient_ptr.dtype.element_ty), mask=inside)
        total += tl.sum(gradient, axis=0, keep_dims=True)
    tl.store(dbias_ptr + tl.program_id(0) * num_columns + columns, total, mask=columns < num_columns)
