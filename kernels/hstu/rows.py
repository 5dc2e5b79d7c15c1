"""What the attention kernels share: the mask as intervals, block addressing and SiLU with its derivative.

The whole mask of `kernels.mask` is three numbers per query row i, positions counted within its request:

    keys   0 ........ prefix(i) ........ begin(i) ........ end(i) ........ length
           [  visible  )                 [    visible      )

    query        prefix                       begin            end
    contextual   history_end                  i                i (nothing more)
    history      contextual (+ K2, "keys")    i (i - K1)       i + K1 + 1, or history_end when i is global
    candidate    history_end                  i                i + 1 (itself)

Contextual rows come first in a request and candidates last, so the first and the last row of a tile bound what all of
its rows see.
"""

# mypy: disallow-incomplete-defs=False

import triton
import triton.language as tl


@triton.jit
def visible_intervals(row, num_contextual, history_end, local_window, global_window, GLOBAL_KEYS: tl.constexpr):
    """(prefix, begin, end) of the query rows, scalar or vector."""
    is_history = (row >= num_contextual) & (row < history_end)
    band_end = tl.minimum(history_end, row + local_window + 1)
    if GLOBAL_KEYS:
        prefix = tl.minimum(history_end, num_contextual + global_window)
        begin = tl.maximum(row - local_window, 0)
        end = band_end
    else:
        prefix = num_contextual
        begin = row
        end = tl.where(row < num_contextual + global_window, history_end, band_end)
    prefix = tl.where(is_history, prefix, history_end)
    begin = tl.where(is_history, begin, row)
    end = tl.where(is_history, end, tl.where(row >= history_end, row + 1, row))
    return prefix, begin, end


@triton.jit
def one_kind(first, last, num_contextual, history_end, global_window, GLOBAL_KEYS: tl.constexpr):
    """Whether the rows first..last are all of one kind, so that their intervals move monotonically."""
    kind = ((first >= num_contextual) | (last < num_contextual)) & ((first >= history_end) | (last < history_end))
    if GLOBAL_KEYS:
        return kind
    global_end = num_contextual + global_window
    return kind & ((first >= global_end) | (last < global_end))


@triton.jit
def load_rows(
    source, start, row, length, head, stride_t, stride_h,
    ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """(ROWS, BLOCK_D) of a head from row `row` of the request at `start` on.

    Through a tensor descriptor the rows behind the request are its neighbour's, or zeros where memory ends; through a
    pointer they are zeros, and so are columns beyond DIM.
    """
    if TMA:
        values = source.load([start + row, head * DIM])
    else:
        rows = row + tl.arange(0, ROWS)
        columns = tl.arange(0, BLOCK_D)
        first_ptr = source + head.to(tl.int64) * stride_h
        pointers = first_ptr + (start + rows).to(tl.int64)[:, None] * stride_t + columns[None, :]
        mask = (rows < length)[:, None]
        if DIM != BLOCK_D:
            mask = mask & (columns < DIM)[None, :]
        values = tl.load(pointers, mask=mask, other=0.0)
    return values


@triton.jit
def store_rows(
    target_ptr, values, start, row, end, head, stride_t, stride_h,
    ROWS: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Writes the rows row..end of a head."""
    rows = row + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_D)
    pointers = (
        target_ptr + (start + rows).to(tl.int64)[:, None] * stride_t + head.to(tl.int64) * stride_h + columns[None, :]
    )
    mask = (rows < end)[:, None]
    if DIM != BLOCK_D:
        mask = mask & (columns < DIM)[None, :]
    tl.store(pointers, values.to(target_ptr.dtype.element_ty), mask=mask)


@triton.jit
def store_part(parts_ptr, values, slot, head, H: tl.constexpr, ROWS: tl.constexpr, BLOCK_D: tl.constexpr):
    """Writes a tile's share of a sum to its slot of (slots, H, ROWS, BLOCK_D)."""
    rows = tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK_D)
    begin = (slot.to(tl.int64) * H + head) * (ROWS * BLOCK_D)
    tl.store(parts_ptr + begin + rows[:, None] * BLOCK_D + columns[None, :], values)


@triton.jit
def load_item(items_ptr, counts_ptr, H: tl.constexpr, FIELDS: tl.constexpr):
    """This program's item and head; its first field is negative where there is no work."""
    item_ptr = items_ptr + tl.program_id(0) // H * FIELDS
    start = tl.load(item_ptr, mask=tl.program_id(0) // H < tl.load(counts_ptr), other=-1)
    return (
        start, tl.load(item_ptr + 1), tl.load(item_ptr + 2), tl.load(item_ptr + 3), tl.load(item_ptr + 4),
        tl.load(item_ptr + 5), tl.load(item_ptr + 6), tl.load(item_ptr + 7), tl.load(item_ptr + 8),
        tl.program_id(0) % H,
    )  # fmt: skip


@triton.jit
def tanh(x, FAST_TANH: tl.constexpr):
    """tanh(x) in fp32; FAST_TANH is NVIDIA's instruction, off by at most 2^-11."""
    if FAST_TANH:
        return tl.inline_asm_elementwise("tanh.approx.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1)
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0


@triton.jit
def silu(half, FAST_TANH: tl.constexpr):
    """SiLU(2 half) = half + half tanh(half)."""
    return half + half * tanh(half, FAST_TANH)


@triton.jit
def silu_and_slope(half, FAST_TANH: tl.constexpr):
    """SiLU(2 half) and its derivative by its argument."""
    t = tanh(half, FAST_TANH)
    return half + half * t, 0.5 * (1.0 + t) * (1.0 + half * (1.0 - t))
