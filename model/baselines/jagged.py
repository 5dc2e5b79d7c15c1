"""Reads jagged rows as dense groups of requests of like length, and writes them back.

Legend: B requests, T rows of all requests, G requests of a group, N the group's longest request.

A baseline's attention is dense within a group, so that a long request costs its own square and not the batch's. What
lies beyond a request's end is zero and is never read back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_SMALLEST_GROUP = 16


@dataclass(frozen=True)
class Rows:
    """Where the rows of a group's requests lie.

    Attributes:
        index_GN: (G, N) int64 rows of the jagged tensor, 0 beyond a request's end.
        exists_GN: (G, N) bool, False beyond a request's end.
    """

    index_GN: Tensor
    exists_GN: Tensor

    def read(self, values: Tensor) -> Tensor:
        """(T, ...) to (G, N, ...), zeros beyond a request's end."""
        if values.shape[0] == 0:
            return values.new_zeros((*self.index_GN.shape, *values.shape[1:]))
        exists = self.exists_GN.reshape(*self.exists_GN.shape, *(1 for _ in values.shape[1:]))
        return torch.where(exists, values[self.index_GN], 0.0)


def rows_of(offsets_B1: Tensor, requests_G: Tensor) -> Rows:
    """The rows of some requests, padded to the longest of them."""
    begin_G = offsets_B1[requests_G]
    lengths_G = offsets_B1[requests_G + 1] - begin_G
    position_N = torch.arange(int(lengths_G.max()), device=offsets_B1.device)
    exists_GN = position_N < lengths_G[:, None]
    return Rows(torch.where(exists_GN, begin_G[:, None] + position_N, 0), exists_GN)


def length_groups(lengths_B: Tensor) -> Iterator[Tensor]:
    """(G,) int64 requests at a time: lengths of a group lie within the same octave, empty requests in none."""
    octave_B = torch.bucketize(lengths_B, _SMALLEST_GROUP * 2 ** torch.arange(24, device=lengths_B.device))
    octave_B = torch.where(lengths_B > 0, octave_B, -1)
    for octave in torch.unique(octave_B).tolist():
        if octave >= 0:
            yield (octave_B == octave).nonzero()[:, 0]


def write_back(parts: Sequence[tuple[Tensor, Rows]], like: Tensor) -> Tensor:
    """(T, ...) of the groups' (G, N, ...) outputs; rows of requests that are in no group are zero."""
    if not parts:
        return torch.zeros_like(like)
    index = torch.cat([rows.index_GN[rows.exists_GN] for _, rows in parts])
    values = torch.cat([output[rows.exists_GN] for output, rows in parts])
    return values.new_zeros(like.shape).index_copy(0, index, values)
