"""Which program takes which tile, built on the device: no read-back, whatever the lengths are.

    requests by length, longest first:   [0 1 2 3 4 5 | 0 1 2 | 0]      tiles of a request in a row: they share keys
    tiles that read a whole request go first:  [0 5 | 0 2 | 0 | 1 2 3 4 | 1]

The long programs start while there are short ones left to fill the other multiprocessors; stable sorting keeps
neighbours together, so that keys are found in the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.mask import AttentionMask


@dataclass(frozen=True)
class Sequences:
    """Where requests lie and what their tokens are.

    Attributes:
        offsets_B1: (B + 1,) int64.
        num_candidates_B: (B,) int64.
        num_contextual: of every request.
        total: tokens of all requests.
    """

    offsets_B1: Tensor
    num_candidates_B: Tensor
    num_contextual: int
    total: int


def query_tiles(sequences: Sequences, mask: AttentionMask, block: int) -> Tensor:
    """(tiles, 2) int32 request and first row of each tile of queries; request -1 for a program without work.

    A tile with a contextual row, a global query or a candidate counts as long.
    """
    global_queries = mask.global_window if mask.global_axis == "queries" else 0
    heavy_rows = sequences.num_contextual + global_queries
    return _tiles(sequences, block, heavy_rows=heavy_rows, heavy_candidates=True, oldest_first=False)


def key_tiles(sequences: Sequences, mask: AttentionMask, block: int) -> Tensor:
    """The same for tiles of keys: those with a contextual or global key are long.

    The older a key is, the more queries see it, so each request starts with its last tile.
    """
    global_keys = mask.global_window if mask.global_axis == "keys" else 0
    heavy_rows = sequences.num_contextual + global_keys
    return _tiles(sequences, block, heavy_rows=heavy_rows, heavy_candidates=False, oldest_first=True)


def _tiles(sequences: Sequences, block: int, *, heavy_rows: int, heavy_candidates: bool, oldest_first: bool) -> Tensor:
    lengths_B = sequences.offsets_B1.diff()
    num_requests = lengths_B.numel()
    order_B = lengths_B.argsort(descending=True)
    tiles_B = (lengths_B[order_B] + block - 1) // block
    end_B = tiles_B.cumsum(0)
    # The number of tiles is on the device; this bound of it is not.
    index = torch.arange(sequences.total // block + num_requests, device=lengths_B.device)
    slot = torch.searchsorted(end_B, index, right=True)
    is_tile = slot < num_requests
    slot = slot.clamp(max=num_requests - 1)
    within = index - (end_B - tiles_B)[slot]
    if oldest_first:
        within = tiles_B[slot] - 1 - within
    first = within * block
    request = order_B[slot]
    is_long = first < heavy_rows
    if heavy_candidates:
        tile_end = torch.minimum(first + block, lengths_B[request])
        is_long |= tile_end > (lengths_B - sequences.num_candidates_B)[request]
    table = torch.stack([torch.where(is_tile, request, -1), first], dim=1).to(torch.int32)
    return table[torch.where(is_tile & is_long, 0, 1).argsort(stable=True)]
