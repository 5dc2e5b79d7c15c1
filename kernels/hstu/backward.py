"""The two backward kernels. No atomics, so a gradient is the same on every run.

dq walks the forward's items and key blocks. dk and dv take a tile of keys and visit up to three runs of query blocks:

    queries   0 ---- A ----)          [---- B ----)           [---- D ----) length
              contextual and          those whose band        candidates
              global queries          reaches the tile

Keys that all see (contextual; the newest K2 with the "keys" axis) take A to the end; candidate keys need B alone.
"""

# mypy: disallow-incomplete-defs=False

import triton
import triton.language as tl

from kernels.hstu.forward import block_key, key_blocks, seen_keys, whole_blocks
from kernels.hstu.plan_kernels import ITEM_FIELDS
from kernels.hstu.rows import (
    load_item,
    load_rows,
    one_kind,
    silu_and_slope,
    store_part,
    store_rows,
    visible_intervals,
)


@triton.jit
def add_dq_block(
    acc, q, do, k_source, v_source, key, start, length, head, stride_kt, stride_kh, stride_vt, stride_vh,
    prefix, begin, end, half_alpha, MASKED: tl.constexpr,
    A: tl.constexpr, V: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_N: tl.constexpr,
    FAST_TANH: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
):  # fmt: skip
    """acc + (SiLU' * do v^T) k over one block of keys."""
    base = tl.maximum(tl.minimum(key, length - BLOCK_N), 0) if MASKED else key
    k = load_rows(k_source, start, base, length, head, stride_kt, stride_kh, BLOCK_N, A, BLOCK_A, TMA)
    v = load_rows(v_source, start, base, length, head, stride_vt, stride_vh, BLOCK_N, V, BLOCK_V, TMA)
    _, slope = silu_and_slope(tl.dot(q, tl.trans(k), input_precision=PRECISION) * half_alpha, FAST_TANH)
    ds = (tl.dot(do, tl.trans(v), input_precision=PRECISION) * slope).to(q.dtype)
    if MASKED:
        ds = tl.where(seen_keys(key, base, prefix, begin, end, BLOCK_N), ds, 0.0)
    return tl.dot(ds, k, acc, input_precision=PRECISION)


@triton.jit(do_not_specialize=["num_contextual", "local_window", "global_window"])
def hstu_attention_dq_kernel(
    q_source, k_source, v_source, do_source, dq_ptr, parts_ptr,  # (T, H, A) and (T, H, V), fp32 slots
    items_ptr, counts_ptr,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_ot, stride_oh, stride_dt, stride_dh,
    num_contextual, local_window, global_window, half_alpha, scale,
    H: tl.constexpr, A: tl.constexpr, V: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_V: tl.constexpr,
    GLOBAL_KEYS: tl.constexpr, FAST_TANH: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dq = scale (SiLU' * M * do v^T) k of one item; unscaled to its slot when the item is a part."""
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
    do = load_rows(do_source, q_start, first, end_row, head, stride_ot, stride_oh, BLOCK_M, V, BLOCK_V, TMA)
    acc = tl.zeros((BLOCK_M, BLOCK_A), tl.float32)
    whole_0, whole_1 = whole_blocks(num_a, lo, begin_b, num_b, whole_prefix, whole_begin, whole_end, BLOCK_N)
    for block in tl.range(whole_0, whole_1, num_stages=STAGES):
        key = block_key(block, num_a, lo, begin_b, BLOCK_N)
        acc = add_dq_block(
            acc, q, do, k_source, v_source, key, start, length, head, stride_kt, stride_kh, stride_vt, stride_vh,
            prefix, begin, end, half_alpha, False, A, V, BLOCK_A, BLOCK_V, BLOCK_N, FAST_TANH, PRECISION, TMA,
        )  # fmt: skip
    for rest in tl.range(0, num_a + num_b - (whole_1 - whole_0), num_stages=STAGES):
        block = tl.where(rest < whole_0, rest, rest + whole_1 - whole_0)
        key = block_key(block, num_a, lo, begin_b, BLOCK_N)
        acc = add_dq_block(
            acc, q, do, k_source, v_source, key, start, length, head, stride_kt, stride_kh, stride_vt, stride_vh,
            prefix, begin, end, half_alpha, True, A, V, BLOCK_A, BLOCK_V, BLOCK_N, FAST_TANH, PRECISION, TMA,
        )  # fmt: skip
    if slot < 0:
        store_rows(dq_ptr, acc * scale, q_start, first, end_row, head, stride_dt, stride_dh, BLOCK_M, A, BLOCK_A)
    else:
        store_part(parts_ptr, acc, slot, head, H, BLOCK_M, BLOCK_A)


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
    q_source, k_source, v_source, do_source, dk_ptr, dv_ptr,  # (T, H, A) for q, k, dk and (T, H, V) for v, do, dv
    items_ptr, counts_ptr,
    stride_qt, stride_qh, stride_kt, stride_kh, stride_vt, stride_vh, stride_ot, stride_oh,
    stride_dkt, stride_dkh, stride_dvt, stride_dvh,
    num_contextual, local_window, global_window, half_alpha, dk_scale, dv_scale,
    H: tl.constexpr, A: tl.constexpr, V: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_V: tl.constexpr,
    GLOBAL_KEYS: tl.constexpr, FAST_TANH: tl.constexpr, PRECISION: tl.constexpr, TMA: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """dk = dk_scale (SiLU' * M * do v^T)^T q and dv = dv_scale (SiLU * M)^T do of one tile of keys."""
    start, length, history_end, first, end_row, _, _, _, _, head = load_item(items_ptr, counts_ptr, H, ITEM_FIELDS)
    if start < 0:
        return
    last = end_row - 1
    num_a, begin_b, num_b, begin_d, num_d = query_blocks(
        first, last, length, num_contextual, history_end, local_window, global_window, GLOBAL_KEYS, BLOCK_M
    )
    k = load_rows(k_source, start, first, length, head, stride_kt, stride_kh, BLOCK_N, A, BLOCK_A, TMA)
    v = load_rows(v_source, start, first, length, head, stride_vt, stride_vh, BLOCK_N, V, BLOCK_V, TMA)
    keys = (first + tl.arange(0, BLOCK_N))[:, None]
    dk = tl.zeros((BLOCK_N, BLOCK_A), tl.float32)
    dv = tl.zeros((BLOCK_N, BLOCK_V), tl.float32)
    for block in tl.range(0, num_a + num_b + num_d, num_stages=STAGES):
        in_b = begin_b + (block - num_a) * BLOCK_M
        in_d = begin_d + (block - num_a - num_b) * BLOCK_M
        query = tl.where(block < num_a, block * BLOCK_M, tl.where(block < num_a + num_b, in_b, in_d))
        base = tl.maximum(tl.minimum(query, length - BLOCK_M), 0)
        q = load_rows(q_source, start, base, length, head, stride_qt, stride_qh, BLOCK_M, A, BLOCK_A, TMA)
        do = load_rows(do_source, start, base, length, head, stride_ot, stride_oh, BLOCK_M, V, BLOCK_V, TMA)
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
        if not (whole & (end_query < length)):
            queries = base + tl.arange(0, BLOCK_M)
            prefix, begin, end = visible_intervals(
                queries, num_contextual, history_end, local_window, global_window, GLOBAL_KEYS
            )
            seen = (keys < prefix[None, :]) | ((keys >= begin[None, :]) & (keys < end[None, :]))
            seen = seen & ((queries >= query) & (queries < length))[None, :]
            p = tl.where(seen, p, 0.0)
            ds = tl.where(seen, ds, 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    store_rows(dk_ptr, dk * dk_scale, start, first, end_row, head, stride_dkt, stride_dkh, BLOCK_N, A, BLOCK_A)
    store_rows(dv_ptr, dv * dv_scale, start, first, end_row, head, stride_dvt, stride_dvh, BLOCK_N, V, BLOCK_V)
