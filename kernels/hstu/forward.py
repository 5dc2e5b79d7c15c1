"""The forward kernel: one program per work item and head.

An item is a tile of query rows of one request and the part [lo, hi) of the keys. Within it the tile visits two runs of
key blocks and never reads another key:

    keys   lo ---- A ---- prefix           begin ---- B ---- end
           [blk][blk][blk]                 [blk][blk][blk]

A covers the widest prefix of the tile's rows, B what is left of their bands. Blocks that every row sees whole need no
mask. A block that would reach beyond the request starts earlier instead and masks what it has seen already.
"""

# mypy: disallow-incomplete-defs=False

import triton
import triton.language as tl

from kernels.hstu.plan_kernels import ITEM_FIELDS, SUM_FIELDS
from kernels.hstu.rows import load_item, load_rows, one_kind, silu, store_part, store_rows, visible_intervals


@triton.jit
def key_blocks(
    first, last, lo, hi, num_contextual, history_end, local_window, global_window, GLOBAL_KEYS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Blocks of run A, first key of run B, blocks of run B; then the interval that every row sees whole, twice."""
    prefix_first, begin_first, end_first = visible_intervals(
        first, num_contextual, history_end, local_window, global_window, GLOBAL_KEYS
    )
    prefix_last, begin_last, end_last = visible_intervals(
        last, num_contextual, history_end, local_window, global_window, GLOBAL_KEYS
    )
    end_a = tl.minimum(tl.maximum(prefix_first, prefix_last), hi)
    num_a = tl.cdiv(tl.maximum(end_a - lo, 0), BLOCK_N)
    begin_b = tl.maximum(begin_first, lo + num_a * BLOCK_N)
    num_b = tl.cdiv(tl.maximum(tl.minimum(tl.maximum(end_first, end_last), hi) - begin_b, 0), BLOCK_N)
    uniform = one_kind(first, last, num_contextual, history_end, global_window, GLOBAL_KEYS)
    whole_prefix = tl.where(uniform, tl.minimum(prefix_first, hi), 0)
    whole_end = tl.where(uniform, tl.minimum(tl.minimum(end_first, end_last), hi), 0)
    return num_a, begin_b, num_b, whole_prefix, begin_last, whole_end


@triton.jit
def whole_blocks(num_a, lo, begin_b, num_b, whole_prefix, whole_begin, whole_end, BLOCK_N: tl.constexpr):
    """(first, end) of a run of block numbers that need no mask: those of A, or those of B where A has none."""
    a_end = tl.maximum(whole_prefix - lo, 0) // BLOCK_N
    b_first = tl.cdiv(tl.maximum(whole_begin - begin_b, 0), BLOCK_N)
    b_end = tl.minimum(tl.maximum(whole_end - begin_b, 0) // BLOCK_N, num_b)
    in_b = b_end - b_first > a_end
    begin = tl.where(in_b, num_a + b_first, 0)
    return begin, tl.maximum(tl.where(in_b, num_a + b_end, tl.minimum(a_end, num_a)), begin)


@triton.jit
def block_key(block, num_a, lo, begin_b, BLOCK_N: tl.constexpr):
    """First key of a block of run A or B."""
    return tl.where(block < num_a, lo + block * BLOCK_N, begin_b + (block - num_a) * BLOCK_N)


@triton.jit
def seen_keys(key, base, prefix, begin, end, BLOCK_N: tl.constexpr):
    """(rows, BLOCK_N) mask of the keys from `base` on that count for a block meant to begin at `key`."""
    keys = (base + tl.arange(0, BLOCK_N))[None, :]
    inside = (keys < prefix[:, None]) | ((keys >= begin[:, None]) & (keys < end[:, None]))
    return inside & (keys >= key)


@triton.jit
def add_block(
    acc, q, k_source, v_source, key, start, length, head, stride_kt, stride_kh, stride_vt, stride_vh,
    prefix, begin, end, half_alpha, MASKED: tl.constexpr,
    A: tl.constexpr, V: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
    FAST_TANH: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """acc + SiLU(2 half_alpha q k^T) v over one block of keys."""
    base = tl.maximum(tl.minimum(key, length - BLOCK_N), 0) if MASKED else key
    k = load_rows(k_source, start, base, length, head, stride_kt, stride_kh, BLOCK_N, A, BLOCK_A, TMA)
    p = silu(tl.dot(q, tl.trans(k), input_precision=PRECISION) * half_alpha, FAST_TANH).to(q.dtype)
    if MASKED:
        p = tl.where(seen_keys(key, base, prefix, begin, end, BLOCK_N), p, 0.0)
    v = load_rows(v_source, start, base, length, head, stride_vt, stride_vh, BLOCK_N, V, BLOCK_V, TMA)
    return tl.dot(p, v, acc, input_precision=PRECISION)


@triton.jit(do_not_specialize=["num_contextual", "local_window", "global_window"])
def hstu_attention_fwd_kernel(
    q_source, k_source, v_source, out_ptr, parts_ptr,  # (T, H, A), (T, H, A), (T, H, V), (T, H, V), fp32 slots
    items_ptr, counts_ptr,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_ot, stride_oh,
    num_contextual, local_window, global_window, half_alpha, scale,
    H: tl.constexpr, A: tl.constexpr, V: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_V: tl.constexpr,
    GLOBAL_KEYS: tl.constexpr, FAST_TANH: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr, TWO_LOOPS: tl.constexpr,
):  # fmt: skip
    """(SiLU(alpha q k^T) * M) v * scale of one item; unscaled to its slot when the item is a part."""
    start, length, history_end, first, end_row, lo, hi, slot, q_start, head = load_item(
        items_ptr, counts_ptr, H, ITEM_FIELDS
    )
    if start < 0:
        return
    num_a, begin_b, num_b, whole_prefix, whole_begin, whole_end = key_blocks(
        first, end_row - 1, lo, hi, num_contextual, history_end, local_window, global_window, GLOBAL_KEYS, BLOCK_N
    )
    prefix, begin, end = visible_intervals(
        first + tl.arange(0, BLOCK_M), num_contextual, history_end, local_window, global_window, GLOBAL_KEYS
    )
    prefix, end = tl.minimum(prefix, hi), tl.minimum(end, hi)
    q = load_rows(q_source, q_start, first, end_row, head, stride_qt, stride_qh, BLOCK_M, A, BLOCK_A, TMA)
    acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    if TWO_LOOPS:
        whole_0, whole_1 = whole_blocks(num_a, lo, begin_b, num_b, whole_prefix, whole_begin, whole_end, BLOCK_N)
        for block in tl.range(whole_0, whole_1, num_stages=STAGES):
            key = block_key(block, num_a, lo, begin_b, BLOCK_N)
            acc = add_block(
                acc, q, k_source, v_source, key, start, length, head, stride_kt, stride_kh, stride_vt, stride_vh,
                prefix, begin, end, half_alpha, False, A, V, BLOCK_A, BLOCK_V, BLOCK_N, FAST_TANH, PRECISION, TMA,
            )  # fmt: skip
        for rest in tl.range(0, num_a + num_b - (whole_1 - whole_0), num_stages=STAGES):
            block = tl.where(rest < whole_0, rest, rest + whole_1 - whole_0)
            key = block_key(block, num_a, lo, begin_b, BLOCK_N)
            acc = add_block(
                acc, q, k_source, v_source, key, start, length, head, stride_kt, stride_kh, stride_vt, stride_vh,
                prefix, begin, end, half_alpha, True, A, V, BLOCK_A, BLOCK_V, BLOCK_N, FAST_TANH, PRECISION, TMA,
            )  # fmt: skip
    else:
        for block in tl.range(0, num_a + num_b, num_stages=STAGES):
            key = block_key(block, num_a, lo, begin_b, BLOCK_N)
            base = tl.maximum(tl.minimum(key, length - BLOCK_N), 0)
            k = load_rows(k_source, start, base, length, head, stride_kt, stride_kh, BLOCK_N, A, BLOCK_A, TMA)
            p = silu(tl.dot(q, tl.trans(k), input_precision=PRECISION) * half_alpha, FAST_TANH).to(q.dtype)
            whole = (key + BLOCK_N <= whole_prefix) | ((key >= whole_begin) & (key + BLOCK_N <= whole_end))
            if not whole:
                p = tl.where(seen_keys(key, base, prefix, begin, end, BLOCK_N), p, 0.0)
            v = load_rows(v_source, start, base, length, head, stride_vt, stride_vh, BLOCK_N, V, BLOCK_V, TMA)
            acc = tl.dot(p, v, acc, input_precision=PRECISION)
    if slot < 0:
        store_rows(out_ptr, acc * scale, q_start, first, end_row, head, stride_ot, stride_oh, BLOCK_M, V, BLOCK_V)
    else:
        store_part(parts_ptr, acc, slot, head, H, BLOCK_M, BLOCK_V)


@triton.jit
def sum_parts_kernel(
    parts_ptr, out_ptr, sums_ptr, counts_ptr, stride_t, stride_h, scale,
    H: tl.constexpr, DIM: tl.constexpr, BLOCK_D: tl.constexpr, ROWS: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    """Adds the parts of a tile in their order and writes STEP of its rows."""
    steps: tl.constexpr = ROWS // STEP
    index = tl.program_id(0) // (H * steps)
    head = tl.program_id(0) // steps % H
    step = tl.program_id(0) % steps
    if index >= tl.load(counts_ptr + 1):
        return
    sum_ptr = sums_ptr + index * SUM_FIELDS
    start = tl.load(sum_ptr)
    num_rows = tl.load(sum_ptr + 1)
    if step * STEP >= num_rows:
        return
    slot = tl.load(sum_ptr + 2).to(tl.int64)
    rows = step * STEP + tl.arange(0, STEP)
    columns = tl.arange(0, BLOCK_D)
    acc = tl.zeros((STEP, BLOCK_D), tl.float32)
    for part in range(0, tl.load(sum_ptr + 3)):
        begin = ((slot + part) * H + head) * (ROWS * BLOCK_D)
        acc += tl.load(parts_ptr + begin + rows[:, None] * BLOCK_D + columns[None, :])
    store_rows(out_ptr, acc * scale, start, step * STEP, num_rows, head, stride_t, stride_h, STEP, DIM, BLOCK_D)
