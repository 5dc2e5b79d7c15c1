"""Codes of a batch's columns to rows of the physical table.

Legend: N tokens of a kind, F columns.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Column:
    """Codes of one column: code c, above 0 and below size, is row first_row + c of the physical table."""

    table: str
    first_row: int
    size: int


class FieldRows(nn.Module):
    """Maps the codes of some columns to rows of the physical table."""

    first_row_F: Tensor
    size_F: Tensor

    def __init__(self, columns: Sequence[Column], *, device: torch.device) -> None:
        super().__init__()
        first_row = torch.tensor([column.first_row for column in columns], dtype=torch.int64, device=device)
        size = torch.tensor([column.size for column in columns], dtype=torch.int64, device=device)
        self.register_buffer("first_row_F", first_row, persistent=False)
        self.register_buffer("size_F", size, persistent=False)
        tables = dict.fromkeys(column.table for column in columns)
        message = f"a code lies outside its table, one of {', '.join(tables)}"
        self.message = textwrap.shorten(message, width=250, placeholder=" ...")  # CUDA refuses longer ones

    def forward(self, codes_NF: Tensor) -> Tensor:
        """(N, F) int64 rows, -1 for code 0.

        A code outside its table would be another table's row: it stops the step, on CUDA without waiting for it.
        """
        torch._assert_async(((codes_NF >= 0) & (codes_NF < self.size_F)).all(), self.message)
        return (codes_NF + self.first_row_F).masked_fill_(codes_NF == 0, -1)
