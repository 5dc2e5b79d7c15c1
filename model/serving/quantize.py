"""Embedding rows in fewer bits, in the layout that fbgemm's n-bit lookup reads.

A row of int8 or int4 is [scale fp16 | bias fp16 | codes], value = scale x code + bias, two int4 codes to a byte with
the lower nibble first. With a group size a row is cut into groups of that many values, each with a scale of its own.

Legend: R rows, D width of a row, G groups of a row, N bytes of a group, S values that share a scale.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from features.config import Closed
from features.errors import DataError
from features.spec import CategoricalField
from model.serving.precision import Precision

SCALE_BIAS_BYTES = 4
_LARGEST_HALF = 65504.0
_ROWS_AT_ONCE = 1 << 16
# A narrower range rounds most values finer and clips a few: often the smaller error with 16 levels, never with 256.
_INT4_RANGES = (1.0, 0.96, 0.92, 0.88, 0.84, 0.8, 0.76, 0.72)


class RowFormat(Closed):
    """How the rows of a table are stored.

    precision: of a value.
    group_size: values that share a scale, int4 alone; null for one scale a row.
    """

    precision: Precision
    group_size: Annotated[int, Field(ge=8, multiple_of=8)] | None = None

    @model_validator(mode="after")
    def _groups_are_int4(self) -> Self:
        if self.group_size is not None and self.precision != "int4":
            raise ValueError(f"group_size: only int4 has groups, {self.precision} does not")
        return self

    def num_groups(self, dim: int) -> int:
        """G.

        Raises:
            DataError: a row does not divide into such groups.
        """
        if self.group_size is None:
            return 1
        if dim % self.group_size:
            raise DataError(f"params.yaml: export.group_size: {self.group_size} does not divide model.dim {dim}")
        return dim // self.group_size

    def group_bytes(self, dim: int) -> int:
        """N, without any padding."""
        size = dim // self.num_groups(dim)
        if self.precision in ("fp32", "fp16"):
            return size * (4 if self.precision == "fp32" else 2)
        return SCALE_BIAS_BYTES + (size if self.precision == "int8" else size // 2)

    def row_bytes(self, dim: int) -> int:
        """Bytes of a row with all its groups."""
        return self.num_groups(dim) * self.group_bytes(dim)


@dataclass(frozen=True)
class Segment:
    """Tables that are stored alike, one after the other; `is_small` if they are those of few rows."""

    fields: tuple[CategoricalField, ...]
    rows: RowFormat
    is_small: bool

    @property
    def num_rows(self) -> int:
        """Of all its tables."""
        return sum(field.size for field in self.fields)


class TableFormat(Closed):
    """How a model's tables are stored.

    rows: of a large table.
    small_rows: tables of at most this many rows are a segment of their own, which a GPU holds in its memory and which
        has at least 8 bits. Such a row is part of most tokens: its error and its way count often, its bytes do not.
    """

    rows: RowFormat
    small_rows: Annotated[int, Field(ge=0)] = 0

    @property
    def label(self) -> str:
        """A short name, such as int4/32."""
        return self.rows.precision if self.rows.group_size is None else f"{self.rows.precision}/{self.rows.group_size}"

    def segments(self, fields: tuple[CategoricalField, ...]) -> tuple[Segment, ...]:
        """Tables by how they are stored, in the order in which they are laid out."""
        large = tuple(field for field in fields if field.size > self.small_rows)
        small = tuple(field for field in fields if field.size <= self.small_rows)
        of_small = RowFormat(precision="int8") if self.rows.precision == "int4" else self.rows
        both = (Segment(large, self.rows, is_small=False), Segment(small, of_small, is_small=True))
        return tuple(segment for segment in both if segment.fields)

    def num_bytes(self, fields: tuple[CategoricalField, ...], dim: int) -> int:
        """Bytes of all rows, without any padding."""
        return sum(segment.num_rows * segment.rows.row_bytes(dim) for segment in self.segments(fields))


def quantize_rows(weights_RD: Tensor, row_format: RowFormat) -> Tensor:
    """Rows as bytes.

    Args:
        weights_RD: (R, D) float32 on the CPU.
        row_format: what to make of them.

    Returns:
        (G, R, N) uint8.

    Raises:
        DataError: a value is not finite, or is too large for half precision.
    """
    if not weights_RD.isfinite().all():
        raise DataError("has values that are not finite; train again")
    if row_format.precision != "fp32" and weights_RD.abs().max() > _LARGEST_HALF:
        raise DataError(f"has values beyond {_LARGEST_HALF:.0f}; export.embeddings: fp32 holds them")
    groups = row_format.num_groups(weights_RD.shape[1])
    parts = [
        torch.stack([_quantize(group_RS, row_format.precision) for group_RS in chunk.chunk(groups, dim=1)])
        for chunk in weights_RD.split(_ROWS_AT_ONCE)
    ]
    return torch.cat(parts, dim=1)


def _quantize(values_RS: Tensor, precision: Precision) -> Tensor:
    """(R, N) uint8 of one group."""
    if precision == "fp32":
        return values_RS.contiguous().view(torch.uint8)
    if precision == "fp16":
        return values_RS.half().contiguous().view(torch.uint8)
    if precision == "int8":
        return _with_scale(*_codes(values_RS, 255, 1.0))
    scale_R2, codes_RS = _codes(values_RS, 15, _INT4_RANGES[0])
    error_R = _error(values_RS, scale_R2, codes_RS)
    for share in _INT4_RANGES[1:]:
        other_R2, other_RS = _codes(values_RS, 15, share)
        other_R = _error(values_RS, other_R2, other_RS)
        better_R1 = (other_R < error_R)[:, None]
        scale_R2, codes_RS = torch.where(better_R1, other_R2, scale_R2), torch.where(better_R1, other_RS, codes_RS)
        error_R = torch.minimum(error_R, other_R)
    return _with_scale(scale_R2, codes_RS[:, 0::2] | codes_RS[:, 1::2] << 4)


def _codes(values_RS: Tensor, num_steps: int, share: float) -> tuple[Tensor, Tensor]:
    """(R, 2) half scale and bias, and (R, S) uint8 codes, over the middle `share` of each row's range."""
    low_R1, high_R1 = values_RS.aminmax(dim=1, keepdim=True)
    margin_R1 = (high_R1 - low_R1) * (1 - share) / 2
    bias_R1 = (low_R1 + margin_R1).half()
    # a row of equal values is its bias alone
    scale_R1 = ((high_R1 - margin_R1 - bias_R1.float()) / num_steps).half()
    safe_R1 = torch.where(scale_R1 > 0, scale_R1, torch.ones_like(scale_R1)).float()
    codes_RS = ((values_RS - bias_R1.float()) / safe_R1).round().clamp(0, num_steps).to(torch.uint8)
    return torch.cat([safe_R1.half(), bias_R1], dim=1), codes_RS


def _error(values_RS: Tensor, scale_R2: Tensor, codes_RS: Tensor) -> Tensor:
    """(R,) squared error of each row."""
    decoded_RS = codes_RS.float() * scale_R2[:, :1].float() + scale_R2[:, 1:].float()
    return (decoded_RS - values_RS).square().sum(dim=1)


def _with_scale(scale_R2: Tensor, packed_RN: Tensor) -> Tensor:
    return torch.cat([scale_R2.contiguous().view(torch.uint8), packed_RN], dim=1)
