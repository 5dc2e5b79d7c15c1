"""The embedding tables of a served model: the interface of `model.tables`, rows in few bits, fbgemm's n-bit lookup.

On a GPU the rows of large tables stay in page-locked host memory unless they are to live on the device. The lookup
kernel then reads over the bus just the rows that it is asked for, in the bits that they have, and makes numbers of them
on the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

import torch
from fbgemm_gpu.split_embedding_configs import SparseType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_inference import IntNBitTableBatchedEmbeddingBagsCodegen
from torch import Tensor, nn

from features.errors import DataError
from features.spec import CategoricalField
from model.serving.quantize import TableFormat
from model.tables import Bags, present_rows

Placement = Literal["host", "device"]
_TYPES = {"fp32": SparseType.FP32, "fp16": SparseType.FP16, "int8": SparseType.INT8, "int4": SparseType.INT4}
_MAX_ROWS = (1 << 31) - 1


class QuantizedTables(nn.Module):
    """Named tables of one width, their rows numbered through as those of `EmbeddingTables`.

    Each group of each segment is a table of fbgemm's: it looks all of them up in one call and lays their sums side by
    side, first the segments, within them the groups.
    """

    def __init__(
        self,
        fields: tuple[CategoricalField, ...],
        dim: int,
        table_format: TableFormat,
        *,
        device: torch.device,
        placement: Placement,
    ) -> None:
        """Allocates the rows, all zero.

        Args:
            fields: name and number of rows of each table.
            dim: D.
            table_format: how a row is stored.
            device: where sums come out.
            placement: where the rows of large tables lie when the device is a GPU.

        Raises:
            DataError: there are more rows than the lookup can address.
        """
        super().__init__()
        self.segments = table_format.segments(fields)
        ordered = [field for segment in self.segments for field in segment.fields]
        self.sizes = {field.name: field.size for field in ordered}
        self.first_row = dict(zip(self.sizes, accumulate(self.sizes.values(), initial=0), strict=False))
        self.num_groups = [segment.rows.num_groups(dim) for segment in self.segments]
        if sum(self.sizes.values()) > _MAX_ROWS:
            raise DataError(f"{sum(self.sizes.values())} embedding rows, a served model has at most {_MAX_ROWS}")
        self.lookup = IntNBitTableBatchedEmbeddingBagsCodegen(
            [
                (
                    f"{number}.{group}",
                    segment.num_rows,
                    dim // groups,
                    _TYPES[segment.rows.precision],
                    _location(device, "device" if segment.is_small else placement),
                )
                for number, (segment, groups) in enumerate(zip(self.segments, self.num_groups, strict=True))
                for group in range(groups)
            ],
            pooling_mode=PoolingMode.SUM,
            # The caller checks each code against its own table, which is stricter.
            bounds_check_mode=BoundsCheckMode.NONE,
            output_dtype=SparseType.FP32,
            device=device,
            uvm_host_mapped=True,
        )
        self.lookup.initialize_weights()

    def load_rows(self, segments: Sequence[Tensor]) -> None:
        """Copies what `quantize_rows` gave for each segment, (G, R, N) each.

        Raises:
            DataError: there are other segments, groups, rows or bytes than these tables have.
        """
        if [len(rows_GRN) for rows_GRN in segments] != self.num_groups:
            raise DataError(f"embedding rows in {len(segments)} segments do not fit the model's {len(self.segments)}")
        tables = iter(self._tables())
        for rows_GRN in segments:
            for source_RN in rows_GRN:
                table_RN = next(tables)
                # behind its bytes a GPU's row has padding
                if source_RN.shape[0] != table_RN.shape[0] or source_RN.shape[1] > table_RN.shape[1]:
                    raise DataError(
                        f"embedding rows are {tuple(source_RN.shape)}, the model needs {tuple(table_RN.shape)}"
                    )
                table_RN[:, : source_RN.shape[1]].copy_(source_RN)

    def _tables(self) -> list[Tensor]:
        return [table_RN for table_RN, _ in self.lookup.split_embedding_weights(split_scale_shifts=False)]

    @property
    def num_bytes(self) -> int:
        """What the rows take in memory, a GPU's padding included."""
        return sum(table_RN.numel() for table_RN in self._tables())

    def plan(self, rows_K: Tensor, offsets_N1: Tensor, num_present: int | None = None) -> Bags:
        """The bags to sum.

        Args:
            rows_K: (K,) int64, rows of all tables numbered through: first_row[name] + code; -1 adds nothing.
            offsets_N1: (N + 1,) int64, bag n sums rows_K[offsets[n] : offsets[n + 1]].
            num_present: rows that are not -1, where the host knows.
        """
        return present_rows(rows_K, offsets_N1, num_present)

    def begin(self, bags: Bags) -> Bags:
        """The same; as EmbeddingTables."""
        return bags

    def forward(self, bags: Bags) -> Tensor:
        """(N, D) float32, their sums."""
        rows_L, offsets_N1 = bags.rows_L, bags.offsets_N1
        rows, offsets, total = [], [], 0
        for groups, (part_L, part_N1) in zip(self.num_groups, self._split(rows_L, offsets_N1), strict=True):
            for _ in range(groups):
                rows.append(part_L)
                offsets.append(part_N1[:-1] + total)
                total += part_L.numel()
        offsets.append(offsets_N1.new_full((1,), total))
        sums = self.lookup(torch.cat(rows).int(), torch.cat(offsets).int())
        if len(self.segments) == 1:
            return sums
        return sums.unflatten(1, (len(self.segments), -1)).sum(dim=1)

    def _split(self, rows_L: Tensor, offsets_N1: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Rows and offsets of each segment, the rows numbered within it."""
        if len(self.segments) == 1:
            return [(rows_L, offsets_N1)]
        begin = self.segments[0].num_rows
        in_first_L = rows_L < begin
        before_L1 = torch.zeros(rows_L.numel() + 1, dtype=torch.int64, device=rows_L.device)
        torch.cumsum(in_first_L, dim=0, out=before_L1[1:])
        first_N1 = before_L1[offsets_N1]
        return [(rows_L[in_first_L], first_N1), (rows_L[~in_first_L] - begin, offsets_N1 - first_N1)]


def _location(device: torch.device, placement: Placement) -> EmbeddingLocation:
    if device.type == "cpu":
        return EmbeddingLocation.HOST
    return EmbeddingLocation.MANAGED if placement == "host" else EmbeddingLocation.DEVICE
