"""Tile shapes of the kernels: fixed per case, measured or compiled beforehand, so that the first call tunes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch

Backend = Literal["cuda", "hip", "interpreter"]

# From here on whole blocks outnumber the masked edges of a band and larger tiles pay.
_WIDE_WINDOW = 2048


UNSPLIT = 1 << 30


@dataclass(frozen=True)
class Tiles:
    """Launch settings of one kernel.

    Attributes:
        block_m: queries of a tile or block.
        block_n: keys of a tile or block.
        warps: warps of a program.
        stages: blocks in flight.
        chunk: keys of a part where a tile reads all of a long history; UNSPLIT reads them in one program.
        two_loops: forward only; whether whole blocks have a loop of their own beside the masked ones.
    """

    block_m: int
    block_n: int
    warps: int
    stages: int
    chunk: int = UNSPLIT
    two_loops: bool = False


@dataclass(frozen=True)
class TileSet:
    """Settings of the three kernels, and whether blocks come by the tensor memory accelerator."""

    forward: Tiles
    dq: Tiles
    dkdv: Tiles
    tma: bool = False


_SMALL = TileSet(Tiles(32, 32, 4, 1, 64), Tiles(32, 32, 4, 1, 64, True), Tiles(32, 32, 4, 1))
_CUDA_BAND = TileSet(Tiles(64, 64, 4, 3, 2048), Tiles(64, 64, 4, 2, 1024), Tiles(32, 64, 4, 4), tma=True)
_CUDA_WIDE = TileSet(Tiles(128, 64, 4, 2, two_loops=True), Tiles(128, 64, 8, 3), Tiles(64, 128, 8, 3), tma=True)
_CUDA_64_WIDE = TileSet(Tiles(128, 64, 4, 3, two_loops=True), Tiles(64, 64, 4, 3), Tiles(64, 64, 4, 3), tma=True)
_CUDA_256 = TileSet(Tiles(64, 32, 4, 2, 2048), Tiles(64, 64, 4, 2, 2048), Tiles(64, 64, 8, 1), tma=True)
_CUDA_256_WIDE = TileSet(Tiles(128, 64, 8, 2, two_loops=True), Tiles(128, 32, 8, 2), Tiles(64, 64, 8, 2), tma=True)
_HIP_128 = TileSet(Tiles(64, 32, 4, 2, 2048), Tiles(64, 32, 4, 2, 2048), Tiles(32, 64, 4, 1))
_HIP_256 = TileSet(Tiles(64, 32, 4, 1, 2048), Tiles(32, 32, 4, 1, 2048), Tiles(32, 32, 4, 1))


@cache
def choose_tiles(*, dim: int, dtype: torch.dtype, local_window: int, backend: Backend) -> TileSet:
    """The settings for a case; `dim` is the larger of the padded query-key and value dims."""
    if dtype == torch.float32 or backend == "interpreter":
        return _SMALL
    if backend == "hip":
        return _HIP_128 if dim <= 128 else _HIP_256
    wide = local_window >= _WIDE_WINDOW
    if dim > 128:
        return _CUDA_256_WIDE if wide else _CUDA_256
    if dim <= 64 and wide:
        return _CUDA_64_WIDE
    return _CUDA_WIDE if wide else _CUDA_BAND
