"""Embedding tables whose rows are dealt out to the ranks: row r of a table lives on rank r % ranks, with its optimizer.

A bag is the sum of two: of the rows that this rank holds, and of those that it fetches from their owners, each distinct
row once.

    distinct rows --all-to-all--> owners look them up --all-to-all--> sums of bags          forward
    gradients of distinct rows <-- all-to-all -- gradients of bags                          backward

An owner looks up its own bags and what the others want in one call of fbgemm's, whose fused exact row-wise Adagrad adds
up the gradients of a row before it updates it once: the same step that one process would take. What travels is a row
per distinct id, not a bag's partial sum per rank, and no rank holds a second copy of a table.

Legend: L codes, N bags, M codes of rows that other ranks hold, U their distinct rows, V rows that the others need of
this rank, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from features.spec import CategoricalField
from kernels import lengths_to_offsets
from model.tables import EmbeddingTables
from model.training.distributed import World

_MAX_INT32 = 2**31 - 1


class ShardedEmbeddingTables(EmbeddingTables):
    """The rows of one rank, and the lookup that all ranks take part in, with batches as different as they like."""

    def __init__(self, fields: tuple[CategoricalField, ...], dim: int, *, device: torch.device, world: World) -> None:
        """Allocates this rank's rows, not yet initialised; arguments as EmbeddingTables."""
        super().__init__(fields, dim, device=device, num_shards=world.size, shard=world.rank)
        self._world = world
        self._before_backward: Callable[[], None] | None = None

    def call_before_backward(self, function: Callable[[], None]) -> None:
        """Calls a function once, when the next backward() has the gradients of all bags and begins with the tables."""
        self._before_backward = function

    def forward(self, rows_L: Tensor, offsets_N1: Tensor) -> Tensor:
        """Sums of rows, as EmbeddingTables; called by all ranks alike, with backward() too."""
        world, device, num_bags = self._world, rows_L.device, offsets_N1.numel() - 1
        is_mine_L = rows_L % world.size == world.rank
        mine_N1 = lengths_to_offsets(is_mine_L)[offsets_N1]
        places_U, inverse_M = self._places(rows_L[~is_mine_L]).unique(return_inverse=True)
        first_R1 = torch.arange(world.size + 1, dtype=places_U.dtype, device=device) * self.rows_per_shard
        needed_R = torch.searchsorted(places_U, first_R1).diff()
        wanted_R = world.exchange(needed_R, [1] * world.size, [1] * world.size)
        needed, wanted = torch.stack([needed_R, wanted_R]).tolist()
        wanted_V = world.exchange(places_U % self.rows_per_shard, needed, wanted)
        # One call for the bags of rows held here and, a row a bag, for what the others want.
        sums = super().forward(
            torch.cat([rows_L[is_mine_L] // world.size, wanted_V]),
            torch.cat([mine_N1, mine_N1[-1] + torch.arange(1, wanted_V.numel() + 1, device=device)]),
        )
        mine_ND, values_VD = sums.split([num_bags, wanted_V.numel()])
        values_UD = _Exchange.apply(values_VD, world, wanted, needed)
        others_N1 = offsets_N1 - mine_N1
        values_ND = mine_ND + embedding_bag(inverse_M, values_UD, others_N1, mode="sum", include_last_offset=True)
        if values_ND.requires_grad:
            values_ND.register_hook(self._begin_backward)
        return values_ND

    def _begin_backward(self, _gradient_ND: Tensor) -> None:
        function, self._before_backward = self._before_backward, None
        if function:
            function()

    def _places(self, rows_M: Tensor) -> Tensor:
        """Rows in the order of their owners, then by the row within it; narrow ones are sorted faster."""
        places_M = rows_M % self._world.size * self.rows_per_shard + rows_M // self._world.size
        return places_M.int() if self._world.size * self.rows_per_shard <= _MAX_INT32 else places_M


class _Exchange(torch.autograd.Function):
    """World.exchange; gradients travel back."""

    @staticmethod
    def forward(ctx: Any, values_VD: Tensor, world: World, send: Sequence[int], receive: Sequence[int]) -> Tensor:
        ctx.world, ctx.send, ctx.receive = world, send, receive
        return world.exchange(values_VD, send, receive)

    @staticmethod
    def backward(ctx: Any, gradient_UD: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.world.exchange(gradient_UD, ctx.receive, ctx.send), None, None, None
