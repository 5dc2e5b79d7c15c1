"""Which program does what, listed on the device without a read-back.

Queries: tiles that read a request's whole history (contextual rows, global queries, candidates) are cut into parts of
`chunk` keys, whose sums go to fp32 slots and are added afterwards. The items of a request walk its keys once, parts
beside the band tiles that read the same keys, so that both find them in the cache:

    keys        0 ......... chunk ......... 2 chunk ......... end
    items       G0 G1 C | b b b b | G0 G1 C | b b b b | G0 G1 C | b b

With the full mask every tile reads its own suffix and is left whole: the newest, longest first. Keys: a tile that every
query sees comes before all others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.hstu.plan_kernels import ITEM_FIELDS, SUM_FIELDS, key_items_kernel, query_items_kernel
from kernels.hstu.tiles import UNSPLIT
from kernels.launch import cdiv
from kernels.mask import AttentionMask
from kernels.plan import AttentionPlan

# A request's candidates are read in parts when they fill at most so many tiles; more are parallel enough by themselves.
_MAX_SPLIT_TILES = 2
_MAX_SLOT_ELEMENTS = 1 << 25
_BLOCK_B = 256


@dataclass(frozen=True)
class WorkItems:
    """A list of items on the device.

    Attributes:
        items_I: (I, ITEM_FIELDS) int32; those from counts[0] on mean nothing.
        counts: (2,) int32, items and sums.
        sums_S: (S, SUM_FIELDS) int32, empty without slots.
        num_slots: fp32 tiles to hold parts.
    """

    items_I: Tensor
    counts: Tensor
    sums_S: Tensor
    num_slots: int


def query_items(plan: AttentionPlan, mask: AttentionMask, *, block: int, chunk: int, slot_elements: int) -> WorkItems:
    """Items of tiles of `block` queries.

    Args:
        plan: the batch.
        mask: whose whole rows are split.
        block: queries of a tile.
        chunk: keys of a part, a multiple of both blocks; UNSPLIT leaves tiles whole.
        slot_elements: fp32 elements of a slot, all heads.
    """
    whole_rows = plan.num_contextual + (mask.global_window if mask.global_axis == "queries" else 0)
    if chunk == UNSPLIT:
        whole_rows = 0
    key = ("queries", whole_rows, block, chunk, slot_elements)
    return plan.derived(
        key,
        lambda: _query_items(
            plan.offsets_B1,
            plan.num_candidates_B,
            whole_rows=min(whole_rows, plan.total),
            block=block,
            chunk=chunk,
            slot_elements=slot_elements,
            max_split=_MAX_SPLIT_TILES,
            totals=(plan.total, plan.total),
            cached=False,
        ),
    )


def candidate_items(
    cache_offsets_B1: Tensor,
    candidate_offsets_B1: Tensor,
    *,
    totals: tuple[int, int],
    block: int,
    chunk: int,
    slot_elements: int,
) -> WorkItems:
    """Items of tiles of candidates that read a cache; `totals` are cached keys and candidates."""
    return _query_items(
        cache_offsets_B1,
        candidate_offsets_B1,
        whole_rows=0,
        block=block,
        chunk=chunk,
        slot_elements=slot_elements,
        max_split=min(16, max(cdiv(totals[1], block), 1)),
        totals=totals,
        cached=True,
    )


def _query_items(
    offsets_B1: Tensor,
    candidates: Tensor,
    *,
    whole_rows: int,
    block: int,
    chunk: int,
    slot_elements: int,
    max_split: int,
    totals: tuple[int, int],
    cached: bool,
) -> WorkItems:
    num_requests = offsets_B1.numel() - 1
    num_keys, num_queries = totals
    max_tiles = cdiv(whole_rows, block) + max_split
    max_parts = max_tiles * (num_keys // chunk + num_requests)
    num_slots = 0 if chunk == UNSPLIT else min(max_parts, _MAX_SLOT_ELEMENTS // slot_elements)
    max_items = num_queries // block + 2 * num_requests + max_parts
    max_sums = max_tiles * min(num_requests, num_keys // chunk)
    items_I = torch.empty(max_items, ITEM_FIELDS.value, dtype=torch.int32, device=offsets_B1.device)
    sums_S = torch.empty(max_sums, SUM_FIELDS.value, dtype=torch.int32, device=offsets_B1.device)
    counts = torch.empty(2, dtype=torch.int32, device=offsets_B1.device)
    with torch.cuda.device_of(offsets_B1):
        query_items_kernel[(num_requests,)](
            offsets_B1, candidates, items_I, sums_S, counts,
            num_requests, whole_rows, chunk, num_slots,
            CACHED=cached, MAX_SPLIT=max_split, BLOCK_M=block, BLOCK_B=_BLOCK_B,
        )  # fmt: skip
    return WorkItems(items_I, counts, sums_S, num_slots)


def key_items(plan: AttentionPlan, mask: AttentionMask, block: int) -> WorkItems:
    """Items of tiles of `block` keys."""
    whole_rows = plan.num_contextual + (mask.global_window if mask.global_axis == "keys" else 0)
    return plan.derived(("keys", whole_rows, block), lambda: _key_items(plan, min(whole_rows, plan.total), block))


def _key_items(plan: AttentionPlan, whole_rows: int, block: int) -> WorkItems:
    device, num_requests = plan.offsets_B1.device, plan.num_candidates_B.numel()
    max_items = plan.total // block + 2 * num_requests
    items_I = torch.empty(max_items, ITEM_FIELDS.value, dtype=torch.int32, device=device)
    counts = torch.empty(2, dtype=torch.int32, device=device)
    with torch.cuda.device_of(plan.offsets_B1):
        key_items_kernel[(num_requests,)](
            plan.offsets_B1, plan.num_candidates_B, items_I, counts, num_requests, whole_rows,
            BLOCK_N=block, BLOCK_B=_BLOCK_B,
        )  # fmt: skip
    return WorkItems(items_I, counts, items_I.new_empty(0, SUM_FIELDS.value), 0)
