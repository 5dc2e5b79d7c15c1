"""All embedding tables of a model in one fbgemm table, on CPU and CUDA through the same class.

The tables share a width, so they are row ranges of one physical table, and a token is one bag of rows from many of
them: one sum-pooled lookup gives all tokens of a batch, five times faster on a CPU than a lookup per table and a sum.
The fused row-wise Adagrad sees each row once per step with its whole gradient, wherever in the batch it was used.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
    ComputeDevice,
    SplitTableBatchedEmbeddingBagsCodegen,
)
from torch import Tensor, nn

from features.spec import CategoricalField
from kernels import lengths_to_offsets

ADAGRAD_EPSILON = 1.0e-8
_ROWS_DRAWN_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Bags:
    """N bags of rows: (L,) int64 rows and (N + 1,) int64 offsets; bag n has rows_L[offsets[n] : offsets[n + 1]]."""

    rows_L: Tensor
    offsets_N1: Tensor


def present_rows(rows_K: Tensor, offsets_N1: Tensor, num_present: int | None = None) -> Bags:
    """Bags without the rows that are -1; a GPU's host waits for their number unless given."""
    is_present_K = rows_K >= 0
    present_N1 = lengths_to_offsets(is_present_K)[offsets_N1]
    if num_present is None:
        return Bags(rows_K[is_present_K], present_N1)
    torch._assert_async(present_N1[-1] == num_present, "known codes were counted of another batch")
    places_L1 = is_present_K.nonzero_static(size=num_present)
    return Bags(rows_K.index_select(0, places_L1.flatten()), present_N1)


class EmbeddingTables(nn.Module):
    """Named tables of one width with fused exact row-wise Adagrad: backward() updates the rows it reaches.

    Attributes:
        sizes: rows of each table.
        first_row: where each table begins in the physical one.
        num_shards, shard: this object holds the rows r of each table with r % num_shards == shard; all, unless
            model.training.sharded_tables asks for less.
        rows_per_shard: physical rows held here.
    """

    def __init__(
        self,
        fields: tuple[CategoricalField, ...],
        dim: int,
        *,
        device: torch.device,
        num_shards: int = 1,
        shard: int = 0,
    ) -> None:
        """Allocates the tables, not yet initialised.

        Args:
            fields: name and number of rows of each table.
            dim: D, a multiple of 4.
            device: where the tables live; they cannot be moved.
            num_shards: into how many parts each table's rows are dealt out.
            shard: the part that is held here.
        """
        super().__init__()
        self.num_shards, self.shard = num_shards, shard
        self.sizes = {field.name: field.size for field in fields}
        # Every table begins at a multiple of num_shards: a row's owner follows from its place.
        padded = [-(-size // num_shards) * num_shards for size in self.sizes.values()]
        self.first_row = dict(zip(self.sizes, accumulate(padded, initial=0), strict=False))
        self.rows_per_shard = sum(padded) // num_shards
        on_cpu = device.type == "cpu"
        location = EmbeddingLocation.HOST if on_cpu else EmbeddingLocation.DEVICE
        compute = ComputeDevice.CPU if on_cpu else ComputeDevice.CUDA
        self.lookup = SplitTableBatchedEmbeddingBagsCodegen(
            [(self.rows_per_shard, dim, location, compute)],
            optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=0.0,
            eps=ADAGRAD_EPSILON,
            weights_precision=SparseType.FP32,
            pooling_mode=PoolingMode.SUM,
            # The caller checks each code against its own table, which is stricter.
            bounds_check_mode=BoundsCheckMode.NONE,
            device=device,
        )

    def plan(self, rows_K: Tensor, offsets_N1: Tensor, num_present: int | None = None) -> Any:
        """What a lookup needs beside the weights: made whenever it suits, for one begin() of these tables.

        Args:
            rows_K: (K,) int64, rows of the physical table: first_row[name] + code; -1 adds nothing.
            offsets_N1: (N + 1,) int64, bag n sums rows_K[offsets[n] : offsets[n + 1]].
            num_present: how many rows are not -1; a GPU's host waits for it unless given. A wrong one is an error.
        """
        return present_rows(rows_K, offsets_N1, num_present)

    def begin(self, plan: Any) -> Any:
        """Begins a lookup, which forward() ends; nothing is to begin with where no other rank waits."""
        return plan

    def forward(self, begun: Any) -> Tensor:
        """(N, D) float32, the sums of rows that were planned."""
        return self.sum_rows(begun)

    def sum_rows(self, bags: Bags) -> Tensor:
        """Sums of rows held here, by their places among these, all of them present."""
        if not torch.is_inference_mode_enabled():
            return self.lookup(bags.rows_L, bags.offsets_N1)
        # fbgemm's CPU lookup exists for autograd's dispatch only, which inference mode leaves out.
        with torch.inference_mode(False), torch.no_grad():
            return self.lookup(bags.rows_L, bags.offsets_N1)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Holds for lookups that begin from now on."""
        self.lookup.set_learning_rate(learning_rate)

    def weights(self) -> dict[str, Tensor]:
        """Each table's (rows held here, D) weights, views that share memory with the model."""
        return self._split(self.lookup.split_embedding_weights()[0].detach())

    def accumulators(self) -> dict[str, Tensor]:
        """Each table's (rows held here,) sums of squared gradients, views that share memory with the optimizer."""
        return self._split(self.lookup.get_optimizer_state()[0]["sum"].detach())

    @torch.no_grad()
    def initialise(self, std: float) -> None:
        """Draws every row from a normal distribution: the same rows from the same seed, however they are dealt out."""
        for name, weight_RD in self.weights().items():
            size = self.sizes[name]
            for begin in range(0, size, _ROWS_DRAWN_AT_ONCE):
                count = min(_ROWS_DRAWN_AT_ONCE, size - begin)
                drawn = weight_RD.new_empty(count, weight_RD.shape[1]).normal_(std=std)
                first = (self.shard - begin) % self.num_shards
                mine_RD = drawn[first :: self.num_shards]
                weight_RD[(begin + first) // self.num_shards :][: len(mine_RD)] = mine_RD

    def part_of(self, whole: Tensor) -> Tensor:
        """The rows of a whole table that are held here."""
        return whole[self.shard :: self.num_shards]

    def _split(self, physical: Tensor) -> dict[str, Tensor]:
        return {
            name: physical[begin // self.num_shards :][: len(range(self.shard, self.sizes[name], self.num_shards))]
            for name, begin in self.first_row.items()
        }
