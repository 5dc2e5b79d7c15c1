"""The two backward kernels. No atomics, so a gradient is the same on every run.

dq walks the forward's key blocks. dk and dv take a tile of keys and visit up to three runs of query blocks:

    queries   0 ---- A ----)          [---- B ----)           [---- D ----) length
              contextual and          those whose band        candidates
              global queries          reaches the tile

Keys that all see (contextual; the newest K2 with the "keys" axis) take A to the end; candidate keys need B alone.
"""

# mypy: disallow-incomplete-defs=False

import triton
import triton.language as tl

from kernels.hstu.forward import key_blocks
from kernels.hstu.rows import load_block, one_kind, silu_and_slope, store_block, visible_intervals


@triton.jit(do_not_specialize=["num_contextual", "local_window", "global_window"])
def hstu_attention_dq_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, dq_ptr,  # (T, H, A), (T, H, A), (T, H, V), (T, H, V), (T, H, A)
    offsets_ptr, candidates_ptr, tiles_ptr,  # (B + 1,), (B,), (tiles, 2) request and first row
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_ot, stride_oh, stride_dt, stride_dh,
    num_contextual, local_window, global_window, half_alpha, dq_scale,
    H: tl.constexpr, A: tl.constexpr, V: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_V: tl.constexpr,
    GLOBAL_KEYS: tl.constexpr, FAST_TANH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dq = dq_scale (SiLU' * M * do v^T) k of one tile of queries; dq_scale = alpha scale."""
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
    do_ptr += start * stride_ot + head * stride_oh
    dq_ptr += start * stride_dt + head * stride_dh

    num_a, begin_b, num_b, whole_prefix, whole_begin, whole_end = key_blocks(
        first, last, num_contextual, history_end, local_window, global_window, GLOBAL_KEYS, BLOCK_N
    )
    prefix, begin, end = visible_intervals(
        first + tl.arange(0, BLOCK_M), num_contextual, history_end, local_window, global_window, GLOBAL_KEYS
    )
    q = load_block(q_ptr, first, stride_qt, length, BLOCK_M, A, BLOCK_A)
    do = load_block(do_ptr, first, stride_ot, length, BLOCK_M, V, BLOCK_V)
    acc = tl.zeros((BLOCK_M, BLOCK_A), tl.float32)
    for block in tl.range(0, num_a + num_b, num_stages=STAGES):
        key = tl.where(block < num_a, block * BLOCK_N, begin_b + (block - num_a) * BLOCK_N)
        k = load_block(k_ptr, key, stride_kt, length, BLOCK_N, A, BLOCK_A)
        v = load_block(v_ptr, key, stride_vt, length, BLOCK_N, V, BLOCK_V)
        _, slope = silu_and_slope(tl.dot(q, tl.trans(k), input_precision=PRECISION) * half_alpha, FAST_TANH)
        ds = (tl.dot(do, tl.trans(v), input_precision=PRECISION) * slope).to(q.dtype)
        whole = (key + BLOCK_N <= whole_prefix) | ((key >= whole_begin) & (key + BLOCK_N <= whole_end))
        if not whole:
            keys = (key + tl.arange(0, BLOCK_N))[None, :]
            seen = (keys < prefix[:, None]) | ((keys >= begin[:, None]) & (keys < end[:, None]))
            ds = tl.where(seen, ds, 0.0)
        acc = tl.dot(ds, k, acc, input_precision=PRECISION)
    store_block(dq_ptr, acc * dq_scale, first, stride_dt, length, BLOCK_M, A, BLOCK_A)


@triton.jit
def query_blocks(
    first, last, length, num_contextual, history_end, local_window, global_window, GLOBAL_KEYS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Blocks of run A, then first query and blocks of runs B and D, for the key tile first..last."""
    global_end = tl.minimum(history_end, num_contextual + global_window)
    if GLOBAL_KEYS:
        end_a = tl.where(first < global_end, length, num_contextual)
        end_b = tl.minimum(history_end, last + local_window + 1)
    else:
        end_a = tl.where(first < num_contextual, length, tl.maximum(num_contextual, tl.minimum(global_end, last + 1)))
        end_b = last + 1
    is_candidate = first >= history_end
    num_a = tl.cdiv(tl.where(is_candidate, 0, end_a), BLOCK_M)
    begin_b = tl.where(is_candidate, first, tl.maximum(tl.maximum(first - local_window, 0), num_a * BLOCK_M))
    num_b = tl.cdiv(tl.maximum(tl.where(is_candidate, last + 1, end_b) - begin_b, 0), BLOCK_M)
    begin_d = tl.maximum(history_end, begin_b + num_b * BLOCK_M)
    num_d = tl.where(is_candidate, 0, tl.cdiv(tl.maximum(length - begin_d, 0), BLOCK_M))
    return num_a, begin_b, num_b, begin_d, num_d


@triton.jit(do_not_specialize=["num_contextual", "local_window", "global_window"])
def hstu_attention_dkdv_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, dk_ptr, dv_ptr,  # (T, H, A) for q, k, dk and (T, H, V) for v, do, dv
    offsets_ptr, candidates_ptr, tiles_ptr,  # (B + 1,), (B,), (tiles, 2) request and first row
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_ot, stride_oh,
    stride_dkt, stride_dkh, stride_dvt, stride_dvh,
    num_contextual, local_window, global_window, half_alpha, dk_scale, dv_scale,
    H: tl.constexpr, A: tl.constexpr, V: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_V: tl.constexpr,
    GLOBAL_KEYS: tl.constexpr, FAST_TANH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dk = dk_scale (SiLU' * M * do v^T)^T q and dv = dv_scale (SiLU * M)^T do of one tile of keys."""
    tile = tl.program_id(0) // H
    head = (tl.program_id(0) % H).to(tl.int64)
    request = tl.load(tiles_ptr + 2 * tile)
    if request < 0:
        return
    first = tl.load(tiles_ptr + 2 * tile + 1)
    start = tl.load(offsets_ptr + request)
    length = (tl.load(offsets_ptr + request + 1) - start).to(tl.int32)
    history_end = length - tl.load(candidates_ptr + request).to(tl.int32)
    last = tl.minimum(first + BLOCK_N, length) - 1
    q_ptr += start * stride_qt + head * stride_qh
    k_ptr += start * stride_kt + head * stride_kh
    v_ptr += start * stride_vt + head * stride_vh
    do_ptr += start * stride_ot + head * stride_oh

    num_a, begin_b, num_b, begin_d, num_d = query_blocks(
        first, last, length, num_contextual, history_end, local_window, global_window, GLOBAL_KEYS, BLOCK_M
    )
    k = load_block(k_ptr, first, stride_kt, length, BLOCK_N, A, BLOCK_A)
    v = load_block(v_ptr, first, stride_vt, length, BLOCK_N, V, BLOCK_V)
    keys = (first + tl.arange(0, BLOCK_N))[:, None]
    dk = tl.zeros((BLOCK_N, BLOCK_A), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for block in tl.range(0, num_a + num_b + num_d, num_stages=STAGES):
        in_b = begin_b + (block - num_a) * BLOCK_M
        in_d = begin_d + (block - num_a - num_b) * BLOCK_M
        query = tl.where(block < num_a, block * BLOCK_M, tl.where(block < num_a + num_b, in_b, in_d))
        q = load_block(q_ptr, query, stride_qt, length, BLOCK_M, A, BLOCK_A)
        do = load_block(do_ptr, query, stride_ot, length, BLOCK_M, V, BLOCK_V)
        p, slope = silu_and_slope(tl.dot(k, tl.trans(q), input_precision=PRECISION) * half_alpha, FAST_TANH)
        ds = tl.dot(v, tl.trans(do), input_precision=PRECISION) * slope
        end_query = query + BLOCK_M - 1
        prefix_0, _, end_0 = visible_intervals(
            query, num_contextual, history_end, local_window, global_window, GLOBAL_KEYS
        )
        _, begin_1, end_1 = visible_intervals(
            end_query, num_contextual, history_end, local_window, global_window, GLOBAL_KEYS
        )
        whole = (last < prefix_0) | ((first >= begin_1) & (last < tl.minimum(end_0, end_1)))
        whole &= one_kind(query, end_query, num_contextual, history_end, global_window, GLOBAL_KEYS)
        if not whole:
            prefix, begin, end = visible_intervals(
                query + tl.arange(0, BLOCK_M), num_contextual, history_end, local_window, global_window, GLOBAL_KEYS
            )
            seen = (keys < prefix[None, :]) | ((keys >= begin[None, :]) & (keys < end[None, :]))
            p = tl.where(seen, p, 0.0)
            ds = tl.where(seen, ds, 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    dk_ptr += start * stride_dkt + head * stride_dkh
    dv_ptr += start * stride_dvt + head * stride_dvh
    store_block(dk_ptr, dk * dk_scale, first, stride_dkt, length, BLOCK_N, A, BLOCK_A)
    store_block(dv_ptr, dv * dv_scale, first, stride_dvt, length, BLOCK_N, V, BLOCK_V)
