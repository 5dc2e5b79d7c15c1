"""The kernels that turn a batch's offsets into lists of work items, on the device and in one launch each.

One program per request finds what the requests before it need and writes its own items. Requests go longest first.
`kernels.hstu.plan` draws the result.
"""

# mypy: disallow-incomplete-defs=False

import triton
import triton.language as tl

# Integers of a work item: [start, length, history_end, first row, end row, first key, end key, slot, query start].
# Request rows are counted from `start` in k and v and from `query start` in q and the output.
ITEM_FIELDS = tl.constexpr(9)
# Integers of a sum: [first row in the output, number of rows, first slot, number of slots].
SUM_FIELDS = tl.constexpr(4)


@triton.jit
def request_extent(offsets_ptr, candidates_ptr, request, inside, CACHED: tl.constexpr):
    """(start, history_end, candidates) of requests; 0 outside.

    `candidates_ptr` counts candidates, which end a request; CACHED: it has their own offsets, k and v only history.
    """
    start = tl.load(offsets_ptr + request, mask=inside, other=0)
    length = tl.load(offsets_ptr + request + 1, mask=inside, other=0) - start
    candidates = tl.load(candidates_ptr + request, mask=inside, other=0)
    if CACHED:
        candidates = tl.load(candidates_ptr + request + 1, mask=inside, other=0) - candidates
        return start.to(tl.int32), length.to(tl.int32), candidates.to(tl.int32)
    return start.to(tl.int32), (length - candidates).to(tl.int32), candidates.to(tl.int32)


@triton.jit
def query_tiles(history_end, candidates, whole_rows, chunk, MAX_SPLIT: tl.constexpr, BLOCK_M: tl.constexpr):
    """(tiles that read all history in parts, number of parts, candidate tiles that read it in one, band tiles)."""
    front = tl.cdiv(tl.minimum(history_end, whole_rows), BLOCK_M)
    candidate_tiles = tl.cdiv(candidates, BLOCK_M)
    in_parts = front + tl.where(candidate_tiles <= MAX_SPLIT, candidate_tiles, 0)
    in_one = tl.where(candidate_tiles <= MAX_SPLIT, 0, candidate_tiles)
    return in_parts, tl.maximum(tl.cdiv(history_end, chunk), 1), in_one, tl.cdiv(history_end, BLOCK_M) - front


@triton.jit
def store_item(items_ptr, place, mask, start, length, history_end, first, end_row, lo, hi, slot, query_start):
    """Writes the items at `place`; the fields may be scalars."""
    item_ptr = items_ptr + place * ITEM_FIELDS
    tl.store(item_ptr, start, mask=mask)
    tl.store(item_ptr + 1, length, mask=mask)
    tl.store(item_ptr + 2, history_end, mask=mask)
    tl.store(item_ptr + 3, first, mask=mask)
    tl.store(item_ptr + 4, end_row, mask=mask)
    tl.store(item_ptr + 5, lo, mask=mask)
    tl.store(item_ptr + 6, hi, mask=mask)
    tl.store(item_ptr + 7, slot, mask=mask)
    tl.store(item_ptr + 8, query_start, mask=mask)


@triton.jit(do_not_specialize=["num_requests", "whole_rows", "chunk", "num_slots"])
def query_items_kernel(
    offsets_ptr, candidates_ptr, items_ptr, sums_ptr, counts_ptr,
    num_requests, whole_rows, chunk, num_slots,
    CACHED: tl.constexpr, MAX_SPLIT: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Items of tiles of queries, in the order of the keys that they read."""
    request = tl.program_id(0)
    start, history_end, candidates = request_extent(offsets_ptr, candidates_ptr, request, True, CACHED)
    before, slots_before, sums_before, total, total_sums = 0, 0, 0, 0, 0
    for begin in range(0, num_requests, BLOCK_B):
        other = begin + tl.arange(0, BLOCK_B)
        inside = other < num_requests
        _, other_end, other_candidates = request_extent(offsets_ptr, candidates_ptr, other, inside, CACHED)
        in_parts, parts, in_one, band = query_tiles(other_end, other_candidates, whole_rows, chunk, MAX_SPLIT, BLOCK_M)
        if CACHED:
            band = band * 0
        split = tl.where(parts > 1, in_parts, 0)
        earlier = inside & ((other_end > history_end) | ((other_end == history_end) & (other < request)))
        count = in_parts * parts + in_one + band
        before += tl.sum(tl.where(earlier, count, 0))
        slots_before += tl.sum(tl.where(earlier, split * parts, 0))
        sums_before += tl.sum(tl.where(earlier, split, 0))
        total += tl.sum(tl.where(inside, count, 0))
        total_sums += tl.sum(tl.where(inside, split, 0))
    if request == 0:
        tl.store(counts_ptr, total)
        tl.store(counts_ptr + 1, total_sums)

    length = history_end if CACHED else history_end + candidates
    end = history_end + candidates
    query_start = start
    if CACHED:
        query_start = tl.load(candidates_ptr + request).to(tl.int32) - history_end
    in_parts, parts, in_one, band = query_tiles(history_end, candidates, whole_rows, chunk, MAX_SPLIT, BLOCK_M)
    front = tl.cdiv(tl.minimum(history_end, whole_rows), BLOCK_M)
    if CACHED:
        band = 0
    fits = (parts > 1) & (slots_before + in_parts * parts <= num_slots)
    lanes = tl.arange(0, BLOCK_B)
    for begin in range(0, in_one, BLOCK_B):
        first = history_end + (begin + lanes) * BLOCK_M
        store_item(
            items_ptr, before + begin + lanes, begin + lanes < in_one,
            start, length, history_end, first, tl.minimum(first + BLOCK_M, end), 0, length, -1, query_start,
        )  # fmt: skip
    before += in_one
    for begin in range(0, in_parts * parts, BLOCK_B):
        index = begin + lanes
        inside = index < in_parts * parts
        tile, part = index % in_parts, index // in_parts
        first = tl.where(tile < front, tile * BLOCK_M, history_end + (tile - front) * BLOCK_M)
        end_row = tl.minimum(first + BLOCK_M, tl.where(first < history_end, history_end, end))
        # Band tiles whose keys begin before this part's stand before it.
        band_before = tl.minimum(tl.maximum(tl.cdiv(part * chunk, BLOCK_M) - front, 0), band)
        slot = tl.where(fits, slots_before + tile * parts + part, -1)
        hi = tl.where(fits & (part + 1 < parts), (part + 1) * chunk, length)
        # Where slots have run out, the first part takes all keys and the others are left empty.
        exists = fits | (part == 0)
        store_item(
            items_ptr, before + index + band_before, inside,
            tl.where(exists, start, -1), length, history_end, first, end_row, part * chunk, hi, slot, query_start,
        )  # fmt: skip
        sum_ptr = sums_ptr + (sums_before + tile) * SUM_FIELDS
        is_sum = inside & (part == 0) & (parts > 1)
        tl.store(sum_ptr, query_start + first, mask=is_sum)
        tl.store(sum_ptr + 1, tl.where(fits, end_row - first, 0), mask=is_sum)
        tl.store(sum_ptr + 2, slots_before + tile * parts, mask=is_sum)
        tl.store(sum_ptr + 3, parts, mask=is_sum)
    for begin in range(0, band, BLOCK_B):
        index = begin + lanes
        first = (front + index) * BLOCK_M
        place = before + tl.minimum(first // chunk + 1, parts) * in_parts + index
        store_item(
            items_ptr, place, index < band,
            start, length, history_end, first, tl.minimum(first + BLOCK_M, history_end), 0, length, -1, query_start,
        )  # fmt: skip


@triton.jit(do_not_specialize=["num_requests", "whole_rows"])
def key_items_kernel(
    offsets_ptr, candidates_ptr, items_ptr, counts_ptr, num_requests, whole_rows,
    BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,
):  # fmt: skip
    """Items of tiles of keys: those that every query sees before all others, then each request's oldest first."""
    request = tl.program_id(0)
    start, history_end, candidates = request_extent(offsets_ptr, candidates_ptr, request, True, False)
    before, whole_before, total, total_whole = 0, 0, 0, 0
    for begin in range(0, num_requests, BLOCK_B):
        other = begin + tl.arange(0, BLOCK_B)
        inside = other < num_requests
        _, other_end, other_candidates = request_extent(offsets_ptr, candidates_ptr, other, inside, False)
        whole = tl.cdiv(tl.minimum(other_end, whole_rows), BLOCK_N)
        tiles = tl.cdiv(other_end, BLOCK_N) + tl.cdiv(other_candidates, BLOCK_N)
        earlier = inside & ((other_end > history_end) | ((other_end == history_end) & (other < request)))
        before += tl.sum(tl.where(earlier, tiles - whole, 0))
        whole_before += tl.sum(tl.where(earlier, whole, 0))
        total += tl.sum(tl.where(inside, tiles, 0))
        total_whole += tl.sum(tl.where(inside, whole, 0))
    if request == 0:
        tl.store(counts_ptr, total)

    end = history_end + candidates
    whole = tl.cdiv(tl.minimum(history_end, whole_rows), BLOCK_N)
    history = tl.cdiv(history_end, BLOCK_N)
    tiles = history + tl.cdiv(candidates, BLOCK_N)
    for begin in range(0, tiles, BLOCK_B):
        tile = begin + tl.arange(0, BLOCK_B)
        first = tl.where(tile < history, tile * BLOCK_N, history_end + (tile - history) * BLOCK_N)
        end_row = tl.minimum(first + BLOCK_N, tl.where(first < history_end, history_end, end))
        place = tl.where(tile < whole, whole_before + tile, total_whole + before + tiles - 1 - tile)
        store_item(items_ptr, place, tile < tiles, start, end, history_end, first, end_row, 0, end, -1, start)
