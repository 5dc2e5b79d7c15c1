"""Embedding tables whose rows are dealt out to the ranks: row r of a table lives on rank r % ranks with its optimizer.

A rank gets each distinct row of its bags once, from its owner or from its own memory, and sums them itself:

    distinct rows --all-to-all--> owners look them up --all-to-all--> sums of bags          forward
    gradients of distinct rows <-- all-to-all -- gradients of bags                          backward

An owner looks up its own distinct rows and what the others want in one call of fbgemm's, whose fused exact row-wise
Adagrad adds up the gradients of a row before it updates it once: the same step that one process would take. What
travels is a row per distinct id, not a bag's partial sum per rank, and no rank holds a second copy of a table.

All of it follows from one sort of the codes, by owner and row, the own rows behind the others:

    codes sorted       a a b | c c c | d e e e | -          rows of other ranks, own rows, absent
    rows they have     0 0 1 | 2 2 2 | 3 4 4 4 | 5          numbers of distinct rows: O of others, U in all

How many rows go where is counted on the GPU and sent to the host, which waits for it unless the lookup was planned a
step ahead. While the others' rows travel, the next lookup is planned; while the gradients of the others' rows travel,
those of the own are summed.

Legend: K slots of codes, M of them present, N bags, U distinct rows, O of them on other ranks, V rows that the others
want of this rank, I rows that it has itself of its own, S = V + I rows looked up here, R ranks, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from features.spec import CategoricalField
from kernels import bag_sum, bag_sum_gradient, lengths_to_offsets
from kernels.jagged import request_of_rows
from model.tables import Bags, EmbeddingTables
from model.training.distributed import World
from model.training.host_copy import HostCopy

_MAX_INT32 = 2**31 - 1


@dataclass(frozen=True)
class _SortedCodes:
    """Codes in the order of the drawing.

    Attributes:
        place_K1: where a code's row lies, rank behind rank and this one last; beyond all of them where it is absent, as
            one code that is added to the end always is.
        slot_K1: of each code.
        row_K1: number of each code's distinct row.
        held_U1: where each distinct row lies among those that its rank holds; as long as the codes.
    """

    place_K1: Tensor
    slot_K1: Tensor
    row_K1: Tensor
    held_U1: Tensor


@dataclass(frozen=True)
class _Traffic:
    """What the host knows of a lookup.

    Attributes:
        needed, wanted: distinct rows that this rank needs of each other one, and that each wants of it.
        own_rows: distinct rows of this rank's bags that it holds itself.
        others_codes, codes: codes of the others' rows, and of all.
    """

    needed: Sequence[int]
    wanted: Sequence[int]
    own_rows: int
    others_codes: int
    codes: int

    @property
    def others_rows(self) -> int:
        """O."""
        return sum(self.needed)

    @property
    def rows(self) -> int:
        """U."""
        return self.others_rows + self.own_rows

    @property
    def wanted_rows(self) -> int:
        """V."""
        return sum(self.wanted)


@dataclass(frozen=True)
class _Plan:
    """A lookup before the host knows how much it moves.

    Attributes:
        offsets_N1: (N + 1,) of bags.
        codes: theirs.
        counts: of rows that each rank needs and that each wants, then of codes: of the others, and of all.
    """

    offsets_N1: Tensor
    codes: _SortedCodes
    counts: HostCopy


@dataclass(frozen=True)
class _Begun:
    """A lookup whose rows of other ranks are on their way.

    Attributes:
        plan: what it is.
        traffic: how much it moves.
        rows: those that the others want, then those of its own bags, (S, D), and what ends the transfer and gives
            (O, D). The one entry is taken out by forward(), so that they live no longer than their sums take.
    """

    plan: _Plan
    traffic: _Traffic
    rows: list[tuple[Tensor, Callable[[], Tensor]]]


class ShardedEmbeddingTables(EmbeddingTables):
    """The rows of one rank, and the lookup that all ranks take part in, with batches as different as they like.

    Attributes:
        world: the ranks.
        impl: of the sums over bags, as the device has it.
    """

    def __init__(self, fields: tuple[CategoricalField, ...], dim: int, *, device: torch.device, world: World) -> None:
        """Allocates this rank's rows, not yet initialised; arguments as EmbeddingTables."""
        super().__init__(fields, dim, device=device, num_shards=world.size, shard=world.rank)
        self.world = world
        self.impl = "triton" if device.type == "cuda" else "reference"
        self._calls: tuple[Callable[[], None], ...] = ()
        # Narrow places are sorted faster.
        self._end = world.size * self.rows_per_shard
        self._dtype = torch.int32 if self._end <= _MAX_INT32 else torch.int64
        others = [rank for rank in range(world.size) if rank != world.rank]
        turn_R = torch.tensor([*others, world.rank]).argsort()
        self._turn_R = turn_R.to(device)
        self._first_place_R = (turn_R * self.rows_per_shard).to(device, self._dtype)
        self._bound_R1 = (torch.arange(world.size + 1) * self.rows_per_shard).to(device, self._dtype)

    def call_in_backward(self, before: Callable[[], None], meanwhile: Callable[[], None]) -> None:
        """Calls functions once, in the next backward(), which has the gradients of all bags and begins with the tables.

        Args:
            before: called then.
            meanwhile: called while gradients travel.
        """
        self._calls = (before, meanwhile)

    def plan(self, rows_K: Tensor, offsets_N1: Tensor, num_present: int | None = None) -> _Plan:
        """As EmbeddingTables; called by all ranks alike. Waits for nothing, so `num_present` is not needed."""
        codes, world = self._sorted(rows_K), self.world
        code_R1 = torch.searchsorted(codes.place_K1, self._bound_R1)
        needed_R = codes.row_K1[code_R1].diff()[self._turn_R]
        wanted_R = world.exchange(needed_R, [1] * world.size, [1] * world.size)
        return _Plan(offsets_N1, codes, HostCopy.of(torch.cat([needed_R, wanted_R, code_R1[-2:]])))

    def begin(self, plan: _Plan) -> _Begun:
        """Looks rows up and sends the others theirs; called by all ranks alike, after the update of the step before."""
        traffic, world = self._traffic(plan.counts), self.world
        needed_O, own_I = plan.codes.held_U1[: traffic.rows].split([traffic.others_rows, traffic.own_rows])
        wanted_V = world.exchange(needed_O, traffic.needed, traffic.wanted)
        rows_S = torch.cat([wanted_V, own_I]).long()
        values_SD = self.sum_rows(Bags(rows_S, torch.arange(rows_S.numel() + 1, device=rows_S.device)))
        wanted_VD = values_SD.detach()[: traffic.wanted_rows]
        return _Begun(plan, traffic, [(values_SD, world.start_exchange(wanted_VD, traffic.wanted, traffic.needed))])

    def forward(self, begun: _Begun) -> Tensor:
        """(N, D) float32, the sums that were planned; called by all ranks alike, with backward() too."""
        return _SumOfRanks.apply(*begun.rows.pop(), begun.plan, begun.traffic, self)

    def take_calls(self) -> tuple[Callable[[], None], ...]:
        """The functions of call_in_backward, if it was called since."""
        calls, self._calls = self._calls, ()
        return calls

    def _sorted(self, rows_K: Tensor) -> _SortedCodes:
        rows_K, size = rows_K.to(self._dtype), self.world.size
        place_K = self._first_place_R[rows_K % size] + rows_K // size
        place_K1 = pad(place_K.masked_fill_(rows_K < 0, self._end), (0, 1), value=self._end)
        place_K1, slot_K1 = place_K1.sort(stable=True)
        row_K1 = lengths_to_offsets(place_K1[1:] != place_K1[:-1])
        place_U1 = torch.empty_like(place_K1).scatter_(0, row_K1, place_K1)
        return _SortedCodes(place_K1, slot_K1, row_K1, place_U1 % self.rows_per_shard)

    def _traffic(self, copied: HostCopy) -> _Traffic:
        world = self.world
        *counts, others_codes, num_codes = copied.read()
        needed, wanted = counts[: world.size], counts[world.size :]
        own_rows, needed[world.rank], wanted[world.rank] = needed[world.rank], 0, 0
        return _Traffic(needed, wanted, own_rows, others_codes, num_codes)


class _SumOfRanks(torch.autograd.Function):
    """Sums the others' rows, which `others_OD` waits for, and the own ones over the bags; gradients go the way back."""

    @staticmethod
    def forward(
        ctx: Any,
        values_SD: Tensor,
        others_OD: Callable[[], Tensor],
        plan: _Plan,
        traffic: _Traffic,
        tables: ShardedEmbeddingTables,
    ) -> Tensor:
        codes, num_slots = plan.codes, plan.codes.slot_K1.numel() - 1
        row_K = torch.empty_like(codes.row_K1).scatter_(0, codes.slot_K1, codes.row_K1)[:num_slots]
        bag_M = request_of_rows(plan.offsets_N1, num_slots)[codes.slot_K1[: traffic.codes]]
        ctx.save_for_backward(bag_M, codes.row_K1[: traffic.codes])
        ctx.traffic, ctx.tables = traffic, tables
        own_ID = values_SD[traffic.wanted_rows :]
        return bag_sum(others_OD(), row_K, plan.offsets_N1, impl=tables.impl, more_WD=own_ID)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        traffic, tables, gradient_ND = ctx.traffic, ctx.tables, gradients[0]
        before, meanwhile = tables.take_calls() or (_nothing, _nothing)
        before()
        others, own = slice(traffic.others_codes), slice(traffic.others_codes, None)
        bag_M, row_M = ctx.saved_tensors
        of_others_OD = gradient_ND.new_empty(traffic.others_rows, gradient_ND.shape[1])
        bag_sum_gradient(gradient_ND, bag_M[others], row_M[others], out_UD=of_others_OD, impl=tables.impl)
        # fbgemm wants them in one piece: what the others send comes straight to its place beside the own ones.
        gradient_SD = gradient_ND.new_empty(traffic.wanted_rows + traffic.own_rows, gradient_ND.shape[1])
        wanted_VD, own_ID = gradient_SD.split([traffic.wanted_rows, traffic.own_rows])
        finish = tables.world.start_exchange(of_others_OD, traffic.needed, traffic.wanted, into=wanted_VD)
        first = traffic.others_rows
        bag_sum_gradient(gradient_ND, bag_M[own], row_M[own], out_UD=own_ID, impl=tables.impl, first_row=first)
        meanwhile()
        finish()
        return gradient_SD, None, None, None, None


def _nothing() -> None:
    pass
