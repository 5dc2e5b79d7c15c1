"""The forward kernel: one program per tile of query rows of one request and head.

A tile visits two runs of key blocks and never reads another key:

    keys   0 ---- A ---- prefix            begin ---- B ---- end
           [blk][blk][blk]                 [blk][blk][blk]

A covers the widest prefix of the tile's rows, B what is left of their bands. Blocks that every row sees whole need no
mask.
"""

# mypy: disallow-incomplete-defs=False

import triton
import triton.language as tl

from kernels.hstu.rows import load_block, one_kind, silu, store_block, visible_intervals


@triton.jit
def key_blocks(
    first, last, num_contextual, history_end, local_window, global_window, GLOBAL_KEYS: tl.constexpr,
    BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Blocks of run A, first key of run B, blocks of run B; then the interval that every row sees whole, twice."""
    prefix_first, begin_first, end_first = visible_intervals(
        first, num_contextual, history_end, local_window, global_window, GLOBAL_KEYS
    )
    prefix_last, begin_last, end_last = visible_intervals(
        last, num_contextual, history_end, local_window, global_window, GLOBAL_KEYS
    )
    num_a = tl.cdiv(tl.maximum(prefix_first, prefix_last), BLOCK_N)
    begin_b = tl.maximum(begin_first, num_a * BLOCK_N)
    num_b = tl.cdiv(tl.maximum(tl.maximum(end_first, end_last) - begin_b, 0), BLOCK_N)
    uniform = one_kind(first, last, num_contextual, history_end, global_window, GLOBAL_KEYS)
    whole_prefix = tl.where(uniform, prefix_first, 0)
    whole_end = tl.where(uniform, tl.minimum(end_first, end_last), 0)
    return num_a, begin_b, num_b, whole_prefix, begin_last, whole_end


@triton.jit(do_not_specialize=["num_contextual", "local_window", "global_window"])
def hstu_attention_fwd_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr,  # (T, H, A), (T, H, A), (T, H, V), (T, H, V)
    offsets_ptr, candidates_ptr, tiles_ptr,  # (B + 1,), (B,), (tiles, 2) request and first row
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_ot, stride_oh,
    num_contextual, local_window, global_window, half_alpha, scale,
    H: tl.constexpr, A: tl.constexpr, V: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_V: tl.constexpr,
    GLOBAL_KEYS: tl.constexpr, FAST_TANH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """(SiLU(alpha q k^T) * M) v * scale of one tile."""
    tile = tl.program_id(0) // H
    head = (tl.program_id(0) % H).to(tl.int64)
    request = tl.load(tiles_ptr + 2 * tile)
    if request < 0:
        return
    first = tl.load(tiles_ptr + 2 * tile + 1)
    start = tl.load(offsets_ptr + request)
    length = (tl.load(offsets_ptr + request + 1) - start).to(tl.int32)
    history_end = length - tl.load(candidates_ptr + request).to(tl.int32)
    last = tl.minimum(first + BLOCK_M, length) - 1
    q_ptr += start * stride_qt + head * stride_qh
    k_ptr += start * stride_kt + head * stride_kh
    v_ptr += start * stride_vt + head * stride_vh
    out_ptr += start * stride_ot + head * stride_oh

    num_a, begin_b, num_b, whole_prefix, whole_begin, whole_end = key_blocks(
        first, last, num_contextual, history_end, local_window, global_window, GLOBAL_KEYS, BLOCK_N
    )
    prefix, begin, end = visible_intervals(
        first + tl.arange(0, BLOCK_M), num_contextual, history_end, local_window, global_window, GLOBAL_KEYS
    )
    q = load_block(q_ptr, first, stride_qt, length, BLOCK_M, A, BLOCK_A)
    acc = tl.zeros((BLOCK_M, BLOCK_V), tl.float32)
    for block in tl.range(0, num_a + num_b, num_stages=STAGES):
        key = tl.where(block < num_a, block * BLOCK_N, begin_b + (block - num_a) * BLOCK_N)
        k = load_block(k_ptr, key, stride_kt, length, BLOCK_N, A, BLOCK_A)
        p = silu(tl.dot(q, tl.trans(k), input_precision=PRECISION) * half_alpha, FAST_TANH).to(q.dtype)
        whole = (key + BLOCK_N <= whole_prefix) | ((key >= whole_begin) & (key + BLOCK_N <= whole_end))
        if not whole:
            keys = (key + tl.arange(0, BLOCK_N))[None, :]
            seen = (keys < prefix[:, None]) | ((keys >= begin[:, None]) & (keys < end[:, None]))
            p = tl.where(seen, p, 0.0)
        v = load_block(v_ptr, key, stride_vt, length, BLOCK_N, V, BLOCK_V)
        acc = tl.dot(p, v, acc, input_precision=PRECISION)
    store_block(out_ptr, acc * scale, first, stride_ot, length, BLOCK_M, V, BLOCK_V)
