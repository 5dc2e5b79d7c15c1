"""Embedding tables whose rows are dealt out to the ranks: row r of a table lives on rank r % ranks, with its optimizer.

A lookup fetches each distinct row that this rank's batch needs from its owner and sums bags here:

    distinct rows --all-to-all--> owners look them up --all-to-all--> sums of bags          forward
    gradients of distinct rows <-- all-to-all -- gradients of bags                          backward

An owner sees the requests of all ranks in one lookup of fbgemm's, whose fused exact row-wise Adagrad adds up the
gradients of a row before it updates it once: the same step that one process would take. What travels is a row per
distinct id, not a bag's partial sum per rank, and no rank holds a second copy of a table.

Legend: L codes, N bags, U distinct rows that this rank needs, V rows that the ranks need of this one, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from features.spec import CategoricalField
from model.distributed import World
from model.tables import EmbeddingTables


class ShardedEmbeddingTables(EmbeddingTables):
    """The rows of one rank, and the lookup that all ranks take part in, with batches as different as they like."""

    def __init__(self, fields: tuple[CategoricalField, ...], dim: int, *, device: torch.device, world: World) -> None:
        """Allocates this rank's rows, not yet initialised; arguments as EmbeddingTables."""
        super().__init__(fields, dim, device=device, num_shards=world.size, shard=world.rank)
        self._world = world

    def forward(self, rows_L: Tensor, offsets_N1: Tensor) -> Tensor:
        """Sums of rows, as EmbeddingTables; called by all ranks alike, with backward() too."""
        world, device = self._world, rows_L.device
        # Sorted by owner, then by the row within it.
        owned = self.rows_per_shard
        places_L = rows_L % world.size * owned + rows_L // world.size
        places_U, inverse_L = places_L.unique(return_inverse=True)
        first_R1 = torch.arange(world.size + 1, device=device) * owned
        needed_R = torch.searchsorted(places_U, first_R1).diff()
        wanted_R = world.exchange(needed_R, [1] * world.size, [1] * world.size)
        needed, wanted = torch.stack([needed_R, wanted_R]).tolist()
        wanted_V = world.exchange(places_U % owned, needed, wanted)
        values_VD = super().forward(wanted_V, torch.arange(wanted_V.numel() + 1, device=device))
        values_UD = _Exchange.apply(values_VD, world, wanted, needed)
        return embedding_bag(inverse_L, values_UD, offsets_N1, mode="sum", include_last_offset=True)


class _Exchange(torch.autograd.Function):
    """World.exchange; gradients travel back."""

    @staticmethod
    def forward(ctx: Any, values_VD: Tensor, world: World, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        ctx.world, ctx.send, ctx.receive = world, send, receive
        return world.exchange(values_VD, send, receive)

    @staticmethod
    def backward(ctx: Any, gradient_UD: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.world.exchange(gradient_UD, ctx.receive, ctx.send), None, None, None
